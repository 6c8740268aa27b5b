#include "src/serve/browser_routes.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "src/base/must.h"
#include "src/serve/page_files.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
namespace http = boost::beast::http;
using testing::HasSubstr;
using testing::Not;
using Request = BrowserRoutes::Request;
using Response = BrowserRoutes::Response;

Request Get(const std::string& target) { return Request{http::verb::get, target, 11}; }

std::string Header(const Response& response, const char* name) {
  const auto value = response[name];
  return {value.data(), value.size()};
}

class BrowserRoutesTest : public testing::Test {
 protected:
  BrowserRoutesTest() {
    root_ = fs::path(testing::TempDir()) / ("browser_routes_" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_ / "study" / "models" / "a");
    Write("study/report.html", "<p>report</p>");
    Write("study/a b.csv", "1,2");
    Write("study/models/a/config.json", "{}");
    Write("study/models/a/model.safetensors", "weights");
    Write("study/.hidden.txt", "secret");
    Write("outside.txt", "secret");
    fs::create_symlink(root_ / "outside.txt", root_ / "study" / "link.txt");
    fs::create_directory_symlink(root_, root_ / "study" / "up");
    mkfifo((root_ / "study" / "pipe.txt").c_str(), 0600);
  }
  ~BrowserRoutesTest() override { fs::remove_all(root_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(root_ / name) << text;
  }
  std::string study() const { return (root_ / "study").string(); }

  fs::path root_;
};

TEST_F(BrowserRoutesTest, ThePageNeedsNoKeyAndLetsNothingIn) {
  const BrowserRoutes routes = Must(BrowserRoutes::Create("", "key"));
  const std::optional<Response> page = routes.Answer(Get("/?x"), KeyState::kMissing);
  ASSERT_TRUE(page);
  EXPECT_EQ(page->result_int(), 200);
  EXPECT_EQ(Header(*page, "Content-Type"), "text/html; charset=utf-8");
  EXPECT_THAT(page->body(), HasSubstr("<!doctype html>"));
  const std::string policy = Header(*page, "Content-Security-Policy");
  EXPECT_THAT(policy, HasSubstr("default-src 'none'"));
  EXPECT_THAT(policy, Not(HasSubstr("unsafe")));
  EXPECT_EQ(Header(*page, "Set-Cookie"), "");
}

TEST_F(BrowserRoutesTest, EveryFileOfThePageIsThere) {
  const BrowserRoutes routes = Must(BrowserRoutes::Create("", ""));
  ASSERT_GE(PageFiles().size(), 5u);
  for (const PageFile& file : PageFiles()) {
    if (file.name == "index.html") continue;
    const std::optional<Response> answer =
        routes.Answer(Get("/page/" + std::string(file.name)), KeyState::kNoneWanted);
    ASSERT_TRUE(answer) << file.name;
    EXPECT_EQ(answer->body(), file.content);
    std::ifstream source(std::string(NIBBLE_SOURCE_DIR "/src/serve/page/") +
                         std::string(file.name));
    EXPECT_EQ(answer->body(), std::string(std::istreambuf_iterator<char>(source), {}));
    // Nothing is asked of another host.
    EXPECT_THAT(answer->body(), Not(HasSubstr("://")));
  }
}

TEST_F(BrowserRoutesTest, OtherPathsAreNotItsOwn) {
  const BrowserRoutes routes = Must(BrowserRoutes::Create("", ""));
  for (const char* path : {"/v1/models", "/page", "/page/", "/page/../page.js", "/page/index.html",
                           "/report/", "/report/report.html", "/reports", "", "*"}) {
    EXPECT_FALSE(routes.Answer(Get(path), KeyState::kNoneWanted)) << path;
  }
}

TEST_F(BrowserRoutesTest, OnlyGet) {
  const BrowserRoutes routes = Must(BrowserRoutes::Create("", ""));
  const Request request{http::verb::post, "/", 11};
  const std::optional<Response> answer = routes.Answer(request, KeyState::kNoneWanted);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->result_int(), 405);
  EXPECT_EQ(Header(*answer, "Allow"), "GET");
}

TEST_F(BrowserRoutesTest, ShowsTheReportsFiles) {
  const BrowserRoutes routes = Must(BrowserRoutes::Create(study(), ""));
  const std::tuple<const char*, const char*, const char*> files[] = {
      {"/report/", "text/html; charset=utf-8", "<p>report</p>"},
      {"/report/report.html?print", "text/html; charset=utf-8", "<p>report</p>"},
      {"/report/a%20b.csv", "text/csv; charset=utf-8", "1,2"},
      {"/report/models/a/config.json", "application/json", "{}"}};
  for (const auto& [path, type, content] : files) {
    const std::optional<Response> answer = routes.Answer(Get(path), KeyState::kNoneWanted);
    ASSERT_TRUE(answer) << path;
    EXPECT_EQ(answer->result_int(), 200) << path;
    EXPECT_EQ(Header(*answer, "Content-Type"), type);
    EXPECT_EQ(answer->body(), content);
    EXPECT_THAT(Header(*answer, "Content-Security-Policy"), Not(HasSubstr("script-src")));
    EXPECT_EQ(Header(*answer, "X-Content-Type-Options"), "nosniff");
  }
}

TEST_F(BrowserRoutesTest, ShowsNothingElse) {
  const BrowserRoutes routes = Must(BrowserRoutes::Create(study(), ""));
  for (const char* path :
       {"/report/../outside.txt", "/report/%2e%2e/outside.txt", "/report/..%2foutside.txt",
        "/report/models/../../outside.txt", "/report//etc/hosts.txt", "/report/./report.html",
        "/report/link.txt", "/report/up/outside.txt", "/report/.hidden.txt", "/report/pipe.txt",
        "/report/models", "/report/models/", "/report/models/a/model.safetensors",
        "/report/report.html/", "/report/report.html%00.txt", "/report/report%", "/report/%zz.txt",
        "/report/none.html"}) {
    const std::optional<Response> answer = routes.Answer(Get(path), KeyState::kNoneWanted);
    ASSERT_TRUE(answer) << path;
    EXPECT_EQ(answer->result_int(), 404) << path;
    EXPECT_THAT(answer->body(), Not(HasSubstr("secret")));
  }
}

TEST_F(BrowserRoutesTest, TheReportNeedsTheKeyOrItsCookie) {
  const BrowserRoutes routes = Must(BrowserRoutes::Create(study(), "key"));
  EXPECT_FALSE(routes.Answer(Get("/report/"), KeyState::kMissing));
  EXPECT_FALSE(routes.Answer(Get("/report/none.html"), KeyState::kMissing));
  const std::optional<Response> opened = routes.Answer(Get("/report/"), KeyState::kGiven);
  ASSERT_TRUE(opened);
  const std::string cookie = Header(*opened, "Set-Cookie");
  EXPECT_THAT(cookie, HasSubstr("; HttpOnly; SameSite=Strict"));
  const std::string pair = cookie.substr(0, cookie.find(';'));
  EXPECT_EQ(pair.size(), std::string("nibble_report=").size() + 64);
  const auto with_cookie = [&](const std::string& text) {
    Request request = Get("/report/a%20b.csv");
    request.set(http::field::cookie, text);
    return routes.Answer(request, KeyState::kMissing).has_value();
  };
  EXPECT_TRUE(with_cookie(pair));
  EXPECT_TRUE(with_cookie("a=b; " + pair + "; c=d"));
  std::string other = pair;
  other.back() = other.back() == '0' ? '1' : '0';
  for (const std::string& wrong : {other, pair + "0", pair.substr(0, pair.size() - 1),
                                   std::string("nibble_report="), std::string(";;=;")}) {
    EXPECT_FALSE(with_cookie(wrong)) << wrong;
  }
}

TEST_F(BrowserRoutesTest, RefusesADirectoryWithoutAReport) {
  EXPECT_EQ(BrowserRoutes::Create(root_.string(), "").error().code(), ErrorCode::kBadInput);
  EXPECT_EQ(BrowserRoutes::Create(study() + "/nothing", "").error().code(), ErrorCode::kBadInput);
}

}  // namespace
}  // namespace nibble
