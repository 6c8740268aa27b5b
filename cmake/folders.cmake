# Each folder of src/ is one static library; it may use only the folders before it in this list.
# tests/folder_order_test.py enforces the order.
set(NIBBLE_FOLDERS
    base tensor format ops ops/ref ops/cpu ops/cuda tokenizer checkpoint model quantize engine eval
    bench report study serve load)

set(NIBBLE_LINK_base nlohmann_json::nlohmann_json tl::expected spdlog::spdlog fmt::fmt Threads::Threads)
set(NIBBLE_LINK_tensor PkgConfig::HWY)
set(NIBBLE_LINK_ops_cpu PkgConfig::HWY PkgConfig::OPENBLAS)
set(NIBBLE_LINK_bench PkgConfig::OPENBLAS ${CMAKE_DL_LIBS})
set(NIBBLE_LINK_serve Boost::headers)
set(NIBBLE_LINK_load Boost::headers)
set(NIBBLE_LINK_tokenizer PkgConfig::PCRE2 PkgConfig::UTF8PROC)
if(NIBBLE_WITH_CUDA)
  set(NIBBLE_LINK_ops_cuda CUDA::cudart_static CUDA::cublasLt CUDA::cublas CUDA::cusolver)
endif()

enable_testing()
set(NIBBLE_SHARED_DATA "${PROJECT_SOURCE_DIR}/../shared" CACHE PATH
    "Reference data for tests; a test that needs it skips where it is absent")

# One test program per folder; GoogleTest names each case to CTest.
function(nibble_add_test name libraries)
  add_executable(${name} ${ARGN})
  set_target_properties(${name} PROPERTIES UNITY_BUILD OFF)  # tests' helpers have the same names
  target_link_libraries(${name} PRIVATE ${libraries} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    NIBBLE_SOURCE_DIR="${PROJECT_SOURCE_DIR}" NIBBLE_SHARED_DATA="${NIBBLE_SHARED_DATA}"
    NIBBLE_BUILD_DIR="${PROJECT_BINARY_DIR}")
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT 1200)
endfunction()
include(GoogleTest)

if(NIBBLE_FUZZERS)
  add_custom_target(fuzzers)  # all of them, and no more
endif()
set(nibble_libraries "")  # those built so far, nearest first
foreach(folder IN LISTS NIBBLE_FOLDERS)
  string(REPLACE "/" "_" name ${folder})
  file(GLOB sources CONFIGURE_DEPENDS src/${folder}/*.cc src/${folder}/*.cu)
  set(tests ${sources})
  set(fuzzers ${sources})
  list(FILTER sources EXCLUDE REGEX "_(test|fuzz)\\.(cc|cu)$")
  list(FILTER tests INCLUDE REGEX "_test\\.(cc|cu)$")
  list(FILTER fuzzers INCLUDE REGEX "_fuzz\\.cc$")
  if(folder STREQUAL "ops/cuda")  # one file says that there is no CUDA; all others are it
    if(NIBBLE_WITH_CUDA)
      list(FILTER sources EXCLUDE REGEX "/without_cuda\\.cc$")
    else()
      list(FILTER sources INCLUDE REGEX "/without_cuda\\.cc$")
      set(tests "")
    endif()
  endif()
  if(NOT sources)
    continue()
  endif()

  add_library(nibble_${name} STATIC ${sources})
  target_include_directories(nibble_${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(nibble_${name} PUBLIC ${nibble_libraries} ${NIBBLE_LINK_${name}})
  list(PREPEND nibble_libraries nibble_${name})

  if(NIBBLE_TESTS AND tests)
    nibble_add_test(${name}_test "${nibble_libraries}" ${tests})
  endif()
  if(NIBBLE_FUZZERS)
    foreach(fuzzer IN LISTS fuzzers)
      get_filename_component(fuzzer_name ${fuzzer} NAME_WE)
      add_executable(${fuzzer_name} ${fuzzer})
      target_link_libraries(${fuzzer_name} PRIVATE ${nibble_libraries})
      target_link_options(${fuzzer_name} PRIVATE -fsanitize=fuzzer)
      add_dependencies(fuzzers ${fuzzer_name})
    endforeach()
  endif()
endforeach()
# Highway compiles a kernel's file once for each kind of processor; kernels' launchers, and the parser and
# the interpreter of templates, have short names of their own.
set_target_properties(nibble_ops_cpu nibble_ops_cuda PROPERTIES UNITY_BUILD OFF)
file(GLOB jinja src/tokenizer/jinja*.cc)
set_source_files_properties(${jinja} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
# The server's page is part of the program.
file(GLOB page CONFIGURE_DEPENDS src/serve/page/*)
string(REPLACE ";" "," page_list "${page}")
set(embedded ${PROJECT_BINARY_DIR}/page_files.cc)
add_custom_command(
  OUTPUT ${embedded} DEPENDS ${page} cmake/embed_files.cmake VERBATIM
  COMMAND ${CMAKE_COMMAND} -DOUTPUT=${embedded} -DFILES=${page_list}
          -P ${PROJECT_SOURCE_DIR}/cmake/embed_files.cmake)
target_sources(nibble_serve PRIVATE ${embedded})
set_source_files_properties(${embedded} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
target_compile_definitions(nibble_base PUBLIC NIBBLE_VERSION="${PROJECT_VERSION}")
if(NIBBLE_WITH_CUDA)
  # fmt 9 does not know that nvcc evaluates constant expressions; its headers need them.
  target_compile_definitions(nibble_ops_cuda PUBLIC $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
  # Kernels call constexpr functions that hosts use too: the grids' arithmetic, float16's.
  target_compile_options(nibble_ops_cuda PUBLIC $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
endif()

# The commit is read when the build is configured; only one file depends on it.
find_package(Git QUIET)
set(nibble_commit "")
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} describe --always --dirty --abbrev=12
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE nibble_commit
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
set_source_files_properties(src/study/versions.cc PROPERTIES COMPILE_DEFINITIONS
  "NIBBLE_COMMIT=\"${nibble_commit}\";NIBBLE_BUILD_TYPE=\"${CMAKE_BUILD_TYPE}\";NIBBLE_CUDA_VERSION=\"${CMAKE_CUDA_COMPILER_VERSION}\"")

file(GLOB cli_sources CONFIGURE_DEPENDS src/cli/*.cc)
if(cli_sources)
  add_executable(nibble ${cli_sources})
  target_link_libraries(nibble PRIVATE ${nibble_libraries} CLI11::CLI11 PkgConfig::LIBEDIT)
  set(bundled nibble)
  if(NIBBLE_WITH_CUDA AND NIBBLE_TESTS)
    list(APPEND bundled ops_cuda_test quantize_test engine_test)
  endif()
  set_target_properties(${bundled} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
  install(TARGETS nibble RUNTIME DESTINATION bin)
  # For scripts/bundle: with all libraries but the C library's, the compiler's and CUDA's.
  install(TARGETS ${bundled} RUNTIME_DEPENDENCY_SET bundle
          RUNTIME DESTINATION bin COMPONENT bundle EXCLUDE_FROM_ALL)
  install(RUNTIME_DEPENDENCY_SET bundle
          PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread)\\.so" "^lib(gcc_s|stdc\\+\\+)\\."
                              "^libcu" "^libnv"
          LIBRARY DESTINATION lib COMPONENT bundle EXCLUDE_FROM_ALL)
endif()

if(NIBBLE_TESTS)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  add_test(NAME folder_order
           COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/folder_order_test.py
                   ${PROJECT_SOURCE_DIR} "${NIBBLE_FOLDERS};cli")
  add_test(NAME cli COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/cli_test.py
                            $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR} ${NIBBLE_SHARED_DATA})
  set_tests_properties(cli PROPERTIES TIMEOUT 1800)
  add_test(NAME quantize COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/quantize_test.py
           $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR} ${NIBBLE_SHARED_DATA})
  add_test(NAME serve COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/serve_test.py
                              $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR} ${NIBBLE_SHARED_DATA})
  add_test(NAME serve_hostile
           COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/serve_hostile_test.py
                   $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR} ${NIBBLE_SHARED_DATA})
  add_test(NAME serve_load COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/serve_load_test.py
                                   $<TARGET_FILE:nibble> ${NIBBLE_SHARED_DATA})
  add_test(NAME load COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/load_test.py
                             $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR} ${NIBBLE_SHARED_DATA})
  add_test(NAME chat COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/chat_test.py
                             $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR} ${NIBBLE_SHARED_DATA})
  add_test(NAME deploy COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/deploy_test.py
                               $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR})
  add_test(NAME page COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/page_test.py
                             $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR} ${NIBBLE_SHARED_DATA})
  set_tests_properties(page PROPERTIES TIMEOUT 600 SKIP_RETURN_CODE 77)  # without Chromium
  add_test(NAME layouts COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/layouts_test.py
                                $<TARGET_FILE:nibble> ${PROJECT_SOURCE_DIR} ${NIBBLE_SHARED_DATA})
  set_tests_properties(layouts PROPERTIES TIMEOUT 1200 SKIP_RETURN_CODE 77)  # without numpy
endif()
if(NIBBLE_BENCHMARKS)
  file(GLOB benchmarks CONFIGURE_DEPENDS benchmarks/*.cc benchmarks/*.cu)
  if(NOT NIBBLE_WITH_CUDA)
    list(FILTER benchmarks EXCLUDE REGEX "_cuda\\.(cc|cu)$")
  endif()
  foreach(source IN LISTS benchmarks)
    get_filename_component(name ${source} NAME_WE)
    add_executable(benchmark_${name} ${source})
    target_link_libraries(benchmark_${name} PRIVATE ${nibble_libraries} benchmark::benchmark)
  endforeach()
endif()
