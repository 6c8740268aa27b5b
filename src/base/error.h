// Errors that a user can cause are values: a function that can meet one returns Result<T> or Status.
// CHECK is for mistakes of the programmer and ends the process.
#ifndef NIBBLE_BASE_ERROR_H_
#define NIBBLE_BASE_ERROR_H_

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace nibble {

// The numeric value is the process's exit status.
enum class ErrorCode {
  kInternal = 1,     // a defect of nibble
  kUsage = 2,        // wrong command line, an output that exists already
  kBadInput = 3,     // a file, a model, a device or a request that cannot be used
  kResources = 4,    // not enough memory or disk
  kInterrupted = 130  // the user asked to stop
};

class Error {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}
  ErrorCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same error with "context: " before its message: the file, tensor or field it is about.
  Error In(std::string_view context) const {
    return Error(code_, fmt::format("{}: {}", context, message_));
  }

 private:
  ErrorCode code_;
  std::string message_;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// return BadInput("{}: want {}, got {}", tensor, want, got);
template <typename... Args>
tl::unexpected<Error> Fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(Error(code, fmt::format(format, std::forward<Args>(args)...)));
}
template <typename... Args>
tl::unexpected<Error> BadInput(fmt::format_string<Args...> format, Args&&... args) {
  return Fail(ErrorCode::kBadInput, format, std::forward<Args>(args)...);
}
template <typename... Args>
tl::unexpected<Error> WrongUsage(fmt::format_string<Args...> format, Args&&... args) {
  return Fail(ErrorCode::kUsage, format, std::forward<Args>(args)...);
}
template <typename... Args>
tl::unexpected<Error> NotEnough(fmt::format_string<Args...> format, Args&&... args) {
  return Fail(ErrorCode::kResources, format, std::forward<Args>(args)...);
}

// Passes an error up: NIBBLE_RETURN_IF_ERROR(file.Write(bytes));
#define NIBBLE_RETURN_IF_ERROR(expression)                                  \
  do {                                                                      \
    if (auto nibble_status = (expression); !nibble_status) {                \
      return tl::unexpected<::nibble::Error>(std::move(nibble_status).error()); \
    }                                                                       \
  } while (false)

// NIBBLE_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
#define NIBBLE_CONCAT_(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_(a, b)
#define NIBBLE_ASSIGN_OR_RETURN_(result, lhs, expression)               \
  auto result = (expression);                                           \
  if (!result) {                                                        \
    return tl::unexpected<::nibble::Error>(std::move(result).error()); \
  }                                                                     \
  lhs = std::move(*result)
#define NIBBLE_ASSIGN_OR_RETURN(lhs, expression) \
  NIBBLE_ASSIGN_OR_RETURN_(NIBBLE_CONCAT(nibble_result_, __LINE__), lhs, expression)

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);

// CHECK(a == b, "shape {} against {}", a, b); the message is optional.
#define CHECK(condition, ...)                                                   \
  (static_cast<bool>(condition)                                                 \
       ? static_cast<void>(0)                                                   \
       : ::nibble::CheckFailed(__FILE__, __LINE__, #condition,                  \
                               ::nibble::CheckMessage(__VA_ARGS__)))
inline std::string CheckMessage() { return {}; }
template <typename... Args>
std::string CheckMessage(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}

}  // namespace nibble

#endif  // NIBBLE_BASE_ERROR_H_
