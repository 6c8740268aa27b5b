// The parts around the language: options, errors, bounds, where templates are found.
#include "src/tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Render(std::string_view text, const ChatTemplateOptions& options = {},
                   std::vector<ChatMessage> messages = {{"user", "Hi"}}) {
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(text, "t");
  if (!parsed) return "REFUSED " + parsed.error().message();
  const Result<std::string> rendered = parsed->Render(messages, options);
  return rendered ? *rendered : "FAILED " + rendered.error().message();
}

TEST(ChatTemplate, RendersAConversation) {
  constexpr std::string_view kChatMl =
      "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
      "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  ChatTemplateOptions options;
  options.add_generation_prompt = false;
  EXPECT_EQ(Render(kChatMl, options, {{"user", "Hi"}, {"assistant", " {{ no }} "}}),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n {{ no }} <|im_end|>\n");
  options.add_generation_prompt = true;
  EXPECT_EQ(Render(kChatMl, options, {}), "<|im_start|>assistant\n");
}

TEST(ChatTemplate, SpecialTokensAreUndefinedUnlessGiven) {
  constexpr std::string_view kText = "{{ bos_token }}|{{ eos_token is defined }}";
  EXPECT_EQ(Render(kText), "|False");
  ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.eos_token = "";
  EXPECT_EQ(Render(kText, options), "<s>|True");
}

TEST(ChatTemplate, ToolsAndDocumentsAreNoneUnlessGiven) {
  constexpr std::string_view kText = "{{ tools is none }} {{ documents is defined }} {{ tools }}";
  EXPECT_EQ(Render(kText), "True True None");
  ChatTemplateOptions options;
  options.variables = Json::parse(R"({"tools": [{"name": "f", "n": 2, "x": [true, null, 0.5]}]})");
  EXPECT_EQ(Render(kText, options), "False True [{'name': 'f', 'n': 2, 'x': [True, None, 0.5]}]");
}

TEST(ChatTemplate, TimeComesFromTheOptions) {
  constexpr std::string_view kText =
      "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y %-H:%M') }}{% else %}none{% endif "
      "%}";
  EXPECT_EQ(Render(kText), "none");
  ChatTemplateOptions options;
  std::tm now = {};
  now.tm_year = 124;
  now.tm_mon = 6;
  now.tm_mday = 5;
  now.tm_hour = 9;
  now.tm_min = 3;
  options.now = now;
  EXPECT_EQ(Render(kText, options), "05 Jul 2024 9:03");
  EXPECT_THAT(Render("{{ strftime_now('%Q') }}", options), HasSubstr("%Q"));
  EXPECT_THAT(Render("{{ strftime_now('x%') }}", options), HasSubstr("FAILED"));
}

TEST(ChatTemplate, RaiseExceptionIsAnErrorWithItsLine) {
  const std::string got =
      Render("\n{% if true %}\n{{ raise_exception('no ' ~ 'way') }}{% endif %}");
  EXPECT_EQ(got, "FAILED t: line 3: the template refuses the conversation: no way");
}

TEST(ChatTemplate, RefusesWhatIsNotUtf8) {
  EXPECT_THAT(Render("a\xFFz"), HasSubstr("UTF-8"));
  EXPECT_THAT(Render("x", {}, {{"user", "ok"}, {"user", "a\xC0\x80"}}),
              AllOf(HasSubstr("message 2"), HasSubstr("UTF-8")));
  ChatTemplateOptions options;
  options.bos_token = "\xED\xA0\x80";
  EXPECT_THAT(Render("x", options), HasSubstr("bos_token"));
  options = {};
  options.variables = Json{{"a", Json::array({"\xFF"})}};
  EXPECT_THAT(Render("x", options), HasSubstr("UTF-8"));
}

TEST(ChatTemplate, PassesOnWhatMessagesHoldBesideText) {
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(
      "{% for m in messages %}{{ m.role }}:{{ m.tool_calls[0].function.arguments|tojson if "
      "m.tool_calls is defined else m.content }};{% endfor %}",
      "t");
  ASSERT_TRUE(parsed.has_value());
  const Json messages = Json::parse(R"([
      {"role": "user", "content": [{"type": "text", "text": "ä"}]},
      {"role": "assistant", "content": null,
       "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1, "a": 2.0}}}]}])");
  EXPECT_EQ(parsed->RenderJson(messages, {}).value(),
            "user:[{'type': 'text', 'text': 'ä'}];assistant:{\"z\": 1, \"a\": 2.0};");
  const auto error = [&](const Json& bad) { return parsed->RenderJson(bad, {}).error().message(); };
  EXPECT_EQ(error(Json::object()), "t: the messages are not a list");
  EXPECT_EQ(error(Json::array({{{"role", "user"}}, "text"})), "t: message 2 is not an object");
  EXPECT_THAT(error(Json::array({{{"role", "\xFF"}}})), HasSubstr("UTF-8"));
}

TEST(ChatTemplate, RefusesVariablesThatTheConversationSets) {
  ChatTemplateOptions options;
  options.variables = Json{{"messages", 1}};
  EXPECT_THAT(Render("x", options), HasSubstr("'messages'"));
  options.variables = Json::array();
  EXPECT_THAT(Render("x", options), HasSubstr("not an object"));
  options.variables = Json{{"n", UINT64_MAX}};
  EXPECT_THAT(Render("x", options), HasSubstr("64 bits"));
  Json deep = 1;
  for (int i = 0; i < 200; ++i) deep = Json::array({deep});
  options.variables = Json{{"n", deep}};
  EXPECT_THAT(Render("x", options), HasSubstr("nested"));
}

struct Unsupported {
  std::string_view text;
  std::string_view message;
};

class ChatTemplateRefuses : public ::testing::TestWithParam<Unsupported> {};

TEST_P(ChatTemplateRefuses, WhileParsing) {
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(GetParam().text, "t");
  ASSERT_FALSE(parsed.has_value()) << GetParam().text;
  EXPECT_EQ(parsed.error().message(), GetParam().message);
  EXPECT_EQ(parsed.error().code(), ErrorCode::kBadInput);
}

INSTANTIATE_TEST_SUITE_P(
    Unsupported, ChatTemplateRefuses,
    ::testing::Values(
        Unsupported{"a\n{% include 'x' %}", "t: line 2: the statement 'include' is not supported"},
        Unsupported{"{% extends 'x' %}", "t: line 1: the statement 'extends' is not supported"},
        Unsupported{"{% block a %}{% endblock %}",
                    "t: line 1: the statement 'block' is not supported"},
        Unsupported{"{% call f() %}{% endcall %}",
                    "t: line 1: the statement 'call' is not supported"},
        Unsupported{"{% for a in b recursive %}{% endfor %}",
                    "t: line 1: 'recursive' loops are not supported"},
        Unsupported{"\n\n{{ a|wordwrap }}", "t: line 3: the filter 'wordwrap' is not supported"},
        Unsupported{"{{ a|map('pprint') }}", "t: line 1: the filter 'pprint' is not supported"},
        Unsupported{"{{ a|selectattr('b', 'lower') }}",
                    "t: line 1: the test 'lower' is not supported"},
        Unsupported{"{{ a is escaped }}", "t: line 1: the test 'escaped' is not supported"},
        Unsupported{"{{ a.append(1) }}", "t: line 1: the method 'append' is not supported"},
        Unsupported{"{{ '%s'.format(1) }}", "t: line 1: the method 'format' is not supported"},
        Unsupported{"{{ cycler(1) }}", "t: line 1: the function 'cycler' is not supported"},
        Unsupported{"{{ f(*a) }}", "t: line 1: arguments passed with '*' are not supported"},
        Unsupported{"{{ f(**a) }}", "t: line 1: arguments passed with '**' are not supported"},
        Unsupported{"{{ 'a' + b|safe }}",
                    "t: line 1: the filter 'safe' is supported only at the end of {{ }}"},
        Unsupported{"{% set a = b|safe %}",
                    "t: line 1: the filter 'safe' is supported only at the end of {{ }}"},
        Unsupported{
            "{% if a %}{% macro m() %}{% endmacro %}{% endif %}{% for a in b %}\n{% macro m() "
            "%}{% endmacro %}{% endfor %}",
            "t: line 2: a macro inside another block is not supported"},
        Unsupported{"{% macro m() %}{{ varargs }}{% endmacro %}",
                    "t: line 1: 'varargs' in a macro is not supported"},
        Unsupported{"{{ a[1, 2] }}",
                    "t: line 1: several indices in one subscript are not supported"},
        Unsupported{"{{ '\\N{DASH}' }}", "t: line 1: the escape \\N in a string is not supported"},
        Unsupported{"{{ 0x1F }}", "t: line 1: numbers that start with 0x are not supported"}));

INSTANTIATE_TEST_SUITE_P(
    Malformed, ChatTemplateRefuses,
    ::testing::Values(
        Unsupported{"{{ a", "t: line 1: a tag is not closed"},
        Unsupported{"{# a", "t: line 1: a comment is not closed"},
        Unsupported{"{{ 'a }}", "t: line 1: a string is not closed"},
        Unsupported{"{% raw %} {{", "t: line 1: {% raw %} is not closed"},
        Unsupported{"{% if a %}", "t: line 1: {% endif %} is missing"},
        Unsupported{"{% for a in b %}{% endif %}", "t: line 1: {% endif %} ends nothing"},
        Unsupported{"{{ (a }}", "t: line 1: unexpected '}', want ')'"},
        Unsupported{"{{ a) }}", "t: line 1: unexpected ')'"},
        Unsupported{"{{ }}", "t: line 1: want an expression, got '}}'"},
        Unsupported{"{{ a b }}", "t: line 1: want '}}', got 'b'"},
        Unsupported{"{{ a ? b }}", "t: line 1: unexpected character '?'"},
        Unsupported{"{{ ä }}", "t: line 1: unexpected character 'ä'"},
        Unsupported{"{{ 99999999999999999999 }}",
                    "t: line 1: the number 99999999999999999999 is too large"},
        Unsupported{"{{ 1e999 }}", "t: line 1: the number 1e999 is out of range"},
        Unsupported{"{{ '\\xZ1' }}",
                    "t: line 1: the escape \\x in a string wants 2 hexadecimal digits"},
        Unsupported{"{{ '\\ud800' }}", "t: line 1: the escape \\u in a string is not a character"},
        Unsupported{"{% break %}", "t: line 1: 'break' outside of a loop"},
        Unsupported{"{% for a in b %}{% else %}{% continue %}{% endfor %}",
                    "t: line 1: 'continue' outside of a loop"},
        Unsupported{"{% set true = 1 %}", "t: line 1: cannot assign to true"},
        Unsupported{"{% for loop in b %}{% endfor %}",
                    "t: line 1: cannot assign to 'loop' inside a loop"},
        Unsupported{"{% set a.b.c = 1 %}", "t: line 1: want '%}', got '.'"},
        Unsupported{"{{ f(a=1, a=2) }}", "t: line 1: the argument 'a' is given twice"},
        Unsupported{"{{ f(a=1, 2) }}",
                    "t: line 1: an argument without a name after one with a name"},
        Unsupported{"{{ a is defined is defined }}",
                    "t: line 1: tests cannot be chained with 'is'"}));

std::string Repeated(std::string_view text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

// Each of these would take the process down, or take for ever, without a bound.
TEST(ChatTemplateBounds, Parsing) {
  EXPECT_THAT(Render(std::string(kMaxChatTemplateBytes + 1, 'x')), HasSubstr("REFUSED"));
  EXPECT_EQ(Render(std::string(kMaxChatTemplateBytes, 'x')).size(), kMaxChatTemplateBytes);
  constexpr int kMany = 50'000;
  EXPECT_THAT(Render("{{ " + Repeated("(", kMany)), HasSubstr("REFUSED"));
  EXPECT_THAT(Render("{{ " + Repeated("(", kMany) + "1" + Repeated(")", kMany) + " }}"),
              HasSubstr("nested"));
  EXPECT_THAT(Render("{{ " + Repeated("[", kMany) + Repeated("]", kMany) + " }}"),
              HasSubstr("nested"));
  EXPECT_THAT(Render("{{ " + Repeated("not ", kMany) + "1 }}"), HasSubstr("nested"));
  EXPECT_THAT(Render("{{ 1 " + Repeated("- -", kMany) + "1 }}"), HasSubstr("nested"));
  EXPECT_THAT(Render("{{ 1" + Repeated("+1", kMany) + " }}"), HasSubstr("levels"));
  EXPECT_THAT(Render("{{ a" + Repeated(".b", kMany) + " }}"), HasSubstr("levels"));
  EXPECT_THAT(Render("{{ a" + Repeated("|trim", kMany) + " }}"), HasSubstr("levels"));
  EXPECT_THAT(Render("{{ a" + Repeated("()", kMany) + " }}"), HasSubstr("levels"));
  EXPECT_THAT(Render("{{ 1" + Repeated(" if 1 else 1", 15'000) + " }}"), HasSubstr("nested"));
  EXPECT_THAT(Render(Repeated("{% if 1 %}", 20'000)), HasSubstr("nested"));
  EXPECT_THAT(Render("{% set " + Repeated("(", kMany) + "a"), HasSubstr("REFUSED"));
  EXPECT_THAT(
      Render("{{ a is eq " + Repeated("[1 is eq ", 20'000) + "1" + Repeated("]", 20'000) + " }}"),
      HasSubstr("nested"));
}

TEST(ChatTemplateBounds, Rendering) {
  // Steps.
  EXPECT_THAT(
      Render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
      HasSubstr("FAILED"));
  // Memory: repetition, doubling, lists of lists, replacement, joins, padding.
  EXPECT_THAT(Render("{{ 'a' * 9223372036854775807 }}"), HasSubstr("too much data"));
  EXPECT_THAT(Render("{{ [1] * 4611686018427387904 }}"), HasSubstr("too much data"));
  EXPECT_EQ(Render("{{ ('' * 9223372036854775807) ~ ([] * 9223372036854775807)|length }}"), "0");
  EXPECT_THAT(
      Render("{% set n = namespace(a='x') %}{% for i in range(99) %}{% set n.a = n.a + n.a %}"
             "{% endfor %}"),
      HasSubstr("too much data"));
  EXPECT_THAT(
      Render("{% set n = namespace(a=[1]) %}{% for i in range(99) %}{% set n.a = n.a + n.a %}"
             "{% endfor %}"),
      HasSubstr("too much data"));
  EXPECT_THAT(Render("{% set n = namespace(a='ab') %}{% for i in range(99) %}"
                     "{% set n.a = n.a.replace('', n.a) %}{% endfor %}"),
              HasSubstr("too much data"));
  EXPECT_THAT(Render("{% set n = namespace(a=['x', 'y']) %}{% for i in range(40) %}"
                     "{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}"),
              HasSubstr("FAILED"));
  EXPECT_THAT(Render("{% set n = namespace(a=['x', 'y']) %}{% for i in range(40) %}"
                     "{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a|tojson }}"),
              HasSubstr("FAILED"));
  EXPECT_THAT(
      Render("{% set n = namespace(a=['x'], b=['x']) %}{% for i in range(40) %}"
             "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}"),
      HasSubstr("too many steps"));
  EXPECT_THAT(Render("{{ 'a'|indent(999999999) }}"), HasSubstr("not supported"));
  EXPECT_THAT(Render("{{ range(100001) }}"), HasSubstr("more than 100000"));
  EXPECT_THAT(Render("{{ range(-9223372036854775807, 9223372036854775807) }}"),
              HasSubstr("more than 100000"));
  // Output.
  EXPECT_THAT(Render("{% set a = 'x' * 999999 %}{% for i in range(40) %}{{ a }}{% endfor %}"),
              HasSubstr("writes more"));
  // Nesting of values and of calls.
  EXPECT_THAT(Render("{% set n = namespace(a=1) %}{% for i in range(9999) %}{% set n.a = [n.a] %}"
                     "{% endfor %}"),
              HasSubstr("nested"));
  EXPECT_THAT(
      Render("{% set n = namespace(a=1) %}{% for i in range(9999) %}{% set n.a = {1: n.a} %}"
             "{% endfor %}"),
      HasSubstr("nested"));
  EXPECT_THAT(Render("{% set n = namespace(a='x') %}{% for i in range(9999) %}"
                     "{% set n.a = [n.a].count %}{% endfor %}"),
              HasSubstr("nested"));
  EXPECT_THAT(Render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), HasSubstr("recursing"));
  EXPECT_THAT(Render("{% macro m(a=m()) %}{% endmacro %}{{ m() }}"), HasSubstr("recursing"));
  // Integers.
  EXPECT_THAT(Render("{{ 9223372036854775807 + 1 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Render("{{ -9223372036854775807 - 2 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Render("{{ 4294967296 * 4294967296 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Render("{{ (-9223372036854775807 - 1) // -1 }}"), HasSubstr("64 bits"));
  EXPECT_EQ(Render("{{ (-9223372036854775807 - 1) % -1 }}"), "0");
  EXPECT_THAT(Render("{{ -(-9223372036854775807 - 1) }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Render("{{ (-9223372036854775807 - 1)|abs }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Render("{{ 3 ** 999999 }}"), HasSubstr("64 bits"));
  EXPECT_EQ(Render("{{ 1 ** 9223372036854775807 }}"), "1");
  EXPECT_EQ(Render("{{ 'abc'[-9223372036854775807:9223372036854775807:9223372036854775807] }}"),
            "a");
  EXPECT_EQ(Render("{{ 'abc'[::-9223372036854775807] }}|{{ 'abc'[9223372036854775807] }}"), "c|");
  EXPECT_THAT(Render("{{ 1e300|int }}"), HasSubstr("64 bits"));
}

// Cycles through what can be changed must neither leak nor recurse.
TEST(ChatTemplateBounds, Cycles) {
  EXPECT_EQ(Render("{% set a = namespace() %}{% set a.b = [a] %}{{ a.b[0].b[0] == a }}"), "True");
  EXPECT_THAT(Render("{% set a = namespace() %}{% set a.b = [a] %}{{ a.b }}"), HasSubstr("FAILED"));
  EXPECT_EQ(Render("{% set a = namespace() %}{% for i in [a, 2] %}{% set a.l = loop %}{% endfor %}"
                   "{{ a.l.length }} {{ a.l.last }} {{ a.l.nextitem is defined }}"),
            "2 True False");
}

}  // namespace
}  // namespace nibble
