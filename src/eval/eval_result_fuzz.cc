// libFuzzer target for the record of an evaluation, which --reference reads from any file: a
// result or an error, and what was read is written and read the same.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/eval/eval_result.h"
#include "src/eval/eval_table.h"

namespace nibble {
namespace {

void CheckResult(std::string_view text) {
  const auto json = ParseJson(text, "fuzz.json");
  if (!json) return;
  const auto result = EvalResult::FromJson(*json, "fuzz.json");
  if (!result) {
    CHECK(result.error().message().starts_with("fuzz.json:"));
    return;
  }
  CHECK(!FormatEvalTable(*result, SubjectRows::kShow).empty());
  const std::string written = result->ToJson().dump();
  const auto again = EvalResult::FromJson(*ParseJson(written, "written"), "written");
  CHECK(again.has_value(), "{}", again.error().message());
  CHECK(again->ToJson().dump() == written);
  CHECK(Compare(*result, *again).has_value());
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  nibble::CheckResult({reinterpret_cast<const char*>(data), size});
  return 0;
}
