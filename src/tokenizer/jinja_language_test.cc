// The template language: what each construct gives, written out. Every expectation is what Python's
// jinja2 3.1 gives (a test with vectors from it is in chat_template_vectors_test.cc).
#include <gtest/gtest.h>

#include "src/tokenizer/chat_template.h"

namespace nibble {
namespace {

std::string Render(std::string_view text) {
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(text, "t");
  if (!parsed) return "REFUSED " + parsed.error().message();
  const ChatMessage messages[] = {{"system", " S "}, {"user", "Hi"}, {"assistant", "Hé🙂"}};
  ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.variables =
      Json::parse(R"({"d": {"a": 1, "b": [1, 2.5, null, "x"], "items": 3, "é": {}}})");
  const Result<std::string> rendered = parsed->Render(messages, options);
  if (!rendered) return "FAILED " + rendered.error().message();
  return *rendered;
}

struct Case {
  std::string_view text;
  std::string_view expected;
};

class JinjaLanguage : public ::testing::TestWithParam<Case> {};

TEST_P(JinjaLanguage, Gives) {
  EXPECT_EQ(Render(GetParam().text), GetParam().expected) << GetParam().text;
}

#define NIBBLE_CASES(name, ...) \
  INSTANTIATE_TEST_SUITE_P(name, JinjaLanguage, ::testing::Values(__VA_ARGS__))

NIBBLE_CASES(WhiteSpace, Case{"a\n", "a"},  // one line end at the end goes
             Case{"a\n\n", "a\n"}, Case{"a\r\nb\rc", "a\nb\nc"},
             Case{"{% if 1 %}\nx\n{% endif %}\ny", "x\ny"},  // trim_blocks
             Case{"a\n  {% if 1 %}x{% endif %}", "a\nx"},    // lstrip_blocks
             Case{"a\n \t {# c #}\nb", "a\nb"}, Case{"a  {% if 1 %}x{% endif %}", "a  x"},
             Case{"a\n  {%+ if 1 %}x{% endif +%}\nb", "a\n  x\nb"},
             Case{"a\n  {{ 1 }}\n b", "a\n  1\n b"}, Case{"a \n {{- 1 -}} \n b", "a1b"},
             Case{"a {%- if 1 -%} x {%- endif -%} b", "axb"}, Case{"a {#- c -#} b", "ab"},
             Case{"a\n  {% raw %} {{ x }} {% endraw %}\nb", "a\n {{ x }} b"},
             Case{"a {%- raw -%} {% if %} {%- endraw -%} b", "a{% if %}b"},
             Case{"{{ 1 }}  {% if 1 %}x{% endif %}", "1  x"},
             Case{"{{ 1 -}}\n  {% if 1 %}x{% endif %}", "1x"});

NIBBLE_CASES(
    Literals, Case{"{{ 'a' \"b\" 'c' }}", "abc"},
    Case{"{{ 'a\\n\\t\\x41\\u00e9\\U0001F642\\101\\'\\\"\\\\\\q' }}", "a\n\tAé🙂A'\"\\\\q"},
    Case{"{{ 'a\\\nb' }}", "ab"}, Case{"{{ '\\é' }}", "\\xe9"},
    Case{"{{ 1_000 }} {{ 1.5 }} {{ 1e3 }} {{ 2.0e-7 }} {{ 1e16 }} {{ 123456789012345.0 }}",
         "1000 1.5 1000.0 2e-07 1e+16 123456789012345.0"},
    Case{"{{ true }} {{ True }} {{ none }} {{ None }} {{ false }}", "True True None None False"},
    Case{"{{ [1, 'a', \"it's\", none, 1.0, true,] }}", "[1, 'a', \"it's\", None, 1.0, True]"},
    Case{"{{ (1,) }} {{ (1, 2) }} {{ () }} {{ 1, 2 }}", "(1,) (1, 2) () (1, 2)"},
    Case{"{{ {'a': 1, 'a': 2, 3: [], 'q\"\\'': '\\n\\x00é\\u200b'} }}",
         "{'a': 2, 3: [], 'q\"\\'': '\\n\\x00é\\u200b'}"});

NIBBLE_CASES(
    Operators,
    Case{"{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 4 / 2 }}",
         "3 -4 -2 2 3.5 2.0"},
    Case{"{{ -7.5 // 2 }} {{ -7.5 % 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 3 ** 2 }}",
         "-4.0 0.5 1024 0.5 64"},
    Case{"{{ 1 + 2 * 3 }} {{ 'a' + 'b' ~ 1 + 'c' }}", "7 ab1c"},
    Case{"{{ 'a' ~ 1 ~ none ~ x ~ [1] }}", "a1None[1]"},
    Case{"{{ [1] + [2] }} {{ 'ab' * 2 }} {{ 2 * [0] }} {{ true + 1 }}", "[1, 2] abab [0, 0] 2"},
    Case{"{{ 1 < 2 < 3 }} {{ 1 < 2 > 5 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 == 1.0 }}",
         "True False True True True"},
    Case{"{{ 1 == '1' }} {{ none == false }} {{ x == y }} {{ x != 1 }} {{ (1,) == [1] }}",
         "False False True True False"},
    Case{"{{ 'b' in 'abc' }} {{ 2 in [1, 2] }} {{ 'a' in d }} {{ 'z' not in d }} {{ 1 in x }}",
         "True True True True False"},
    Case{"{{ 0 or 'a' }} {{ '' and 1 }}| {{ not 0 }} {{ 1 and 2 }} {{ not x }}", "a | True 2 True"},
    Case{"{{ 'y' if 1 else 'n' }} {{ 'y' if 0 }}| {{ 1 if 0 else 2 if 0 else 3 }}", "y | 3"},
    Case{"{{ -1|abs }} {{ -(2) }} {{ +true }} {{ - -3 }}", "1 -2 1 3"},
    Case{"{{ 0.1 + 0.2 }} {{ 1e22 }} {{ 5e-324 }} {{ -0.0 }} {{ 100000.0 * 10 }}",
         "0.30000000000000004 1e+22 5e-324 -0.0 1000000.0"});

NIBBLE_CASES(
    Access,
    Case{"{{ d.a }} {{ d['a'] }} {{ d.b[1] }} {{ d.b.3 }} {{ d['items'] }} {{ d['é'] }}",
         "1 1 2.5 x 3 {}"},
    Case{"{{ d.missing }}|{{ d.b[9] }}|{{ d.b[-1] }}|{{ d.b['x'] }}|{{ none.a }}|{{ 3['a'] }}",
         "||x|||"},
    Case{"{{ messages[-1].content[1] }} {{ messages[-1].content[-1] }} {{ 'abc'[5] }}|",
         "é 🙂 |"},
    Case{
        "{{ messages[1:]|length }} {{ 'Hé🙂x'[1:3] }} {{ [1, 2, 3][::-1] }} {{ (1, 2, 3)[:2] }}",
        "2 é🙂 [3, 2, 1] (1, 2)"},
    Case{"{{ 'abcdef'[4:1:-2] }} {{ 'abc'[-2:] }} {{ 'abc'[:-5] }}| {{ 'abc'[2:1] }}|",
         "ec bc | |"},
    Case{"{{ d.items is callable }} {{ d.pop is defined }} {{ d.get('a') }} {{ d.get('q', 7) }} "
         "{{ d.get('q') }}",
         "True False 1 7 None"},
    Case{
        "{{ d.keys()|list }} {{ d.b|length }} {{ {'a': 1}.items() }} {{ {'a': 1}.values()|first }}",
        "['a', 'b', 'items', 'é'] 4 dict_items([('a', 1)]) 1"});

NIBBLE_CASES(
    Errors, Case{"{{ x.y }}", "FAILED t: line 1: 'x' is undefined"},
    Case{"\n{{ d.q.y }}", "FAILED t: line 2: 'dict object' has no attribute 'q'"},
    Case{"{{ x + 1 }}", "FAILED t: line 1: 'x' is undefined"},
    Case{"{{ f() }}", "FAILED t: line 1: 'f' is undefined"},
    Case{"{{ x < 1 }}", "FAILED t: line 1: 'x' is undefined"},
    Case{"{{ 1 / 0 }}", "FAILED t: line 1: division by zero"},
    Case{"{{ 'a' + 1 }}", "FAILED t: line 1: a str and a int cannot be combined with +"},
    Case{"{{ 1 < 'a' }}", "FAILED t: line 1: cannot order a int and a str"},
    Case{"{{ 1 in 'a' }}", "FAILED t: line 1: 'in' a string wants a string on its left, got a int"},
    Case{"{{ none|length }}", "FAILED t: line 1: a NoneType has no length"},
    Case{"{% for a in 3 %}{% endfor %}", "FAILED t: line 1: a int cannot be iterated"},
    Case{"{{ {[]: 1} }}", "FAILED t: line 1: a list cannot be a key"},
    Case{"{{ 'a'.split('') }}", "FAILED t: line 1: split: the separator is empty"},
    Case{"{{ x|tojson }}", "FAILED t: line 1: tojson: a Undefined has no JSON form"},
    Case{"{{ d.items|tojson }}", "FAILED t: line 1: tojson: a method has no JSON form"},
    Case{"{{ 'a'|trim(1, 2) }}", "FAILED t: line 1: trim: takes at most 1 arguments, got 2"},
    Case{"{{ 'a'|tojson(x=1) }}", "FAILED t: line 1: tojson: the argument 'x' is not supported"},
    Case{"{{ '%s' % 1 }}", "FAILED t: line 1: formatting of text with % is not supported"},
    Case{"{% set a.b = 1 %}",
         "FAILED t: line 1: 'a' is not a namespace: its attribute cannot be assigned"},
    Case{"{% set d.b = 1 %}",
         "FAILED t: line 1: 'd' is not a namespace: its attribute cannot be assigned"},
    Case{"{% set n = namespace(_a=1) %}",
         "FAILED t: line 1: namespace: '_a': names must not start with _"},
    Case{"{% set a, b = [1] %}", "FAILED t: line 1: want 2 values to unpack, got 1"});

NIBBLE_CASES(
    Statements, Case{"{% if 0 %}a{% elif '' %}b{% elif 1 %}c{% else %}d{% endif %}", "c"},
    Case{"{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ m.role }}"
         "{{ ',' if not loop.last }}{% endfor %}",
         "103system,212user,321assistant"},
    Case{"{% for a in [1, 2] %}{{ loop.first }}{{ loop.length }}{{ loop.previtem }}{{ "
         "loop.nextitem }};"
         "{% endfor %}",
         "True22;False21;"},
    Case{"{% for a in [] %}x{% else %}empty{% endfor %}", "empty"},
    Case{"{% for a in x %}x{% else %}empty{% endfor %}", "empty"},
    Case{"{% for a in [1, 2] %}{% break %}{% else %}as jinja2 has it{% endfor %}",
         "as jinja2 has it"},
    Case{"{% for a in range(9) if a is odd %}{{ a }}/{{ loop.length }} {% endfor %}",
         "1/4 3/4 5/4 7/4 "},
    Case{"{% for a in range(9) %}{% if a == 2 %}{% continue %}{% endif %}{% if a > 4 %}{% break %}"
         "{% endif %}{{ a }}{% endfor %}",
         "0134"},
    Case{"{% for k, v in d.items() if v is number %}{{ k }}={{ v }} {% endfor %}", "a=1 items=3 "},
    Case{"{% for (a, (b, c)) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "123"},
    Case{"{% for c in 'é🙂' %}{{ c }}.{% endfor %}", "é.🙂."},
    Case{"{% for a in [1, 2] %}{% for b in [3] %}{{ loop.length }}{% endfor %}{{ loop.length }}{% "
         "endfor %}",
         "1212"},
    Case{"{% for a in [1, 2, 3] %}{{ loop.cycle('x', 'y') }}{% endfor %}", "xyx"},
    Case{"{% set a = 1 %}{% for i in [1, 2] %}{{ a }}{% set a = a + 1 %}{{ a }}{% endfor %}{{ a }}",
         "12121"},
    Case{"{% if 1 %}{% set a = 1 %}{% endif %}{{ a }}", "1"},
    Case{"{% set n = namespace(a=0) %}{% for i in [1, 2] %}{% set n.a = n.a + i %}{% endfor %}{{ "
         "n.a }}",
         "3"},
    Case{"{% set n = namespace({'a': 1}, b=2) %}{{ n.a }}{{ n.b }}{{ n.c }}{{ n['a'] }}", "121"},
    // The condition of a loop is asked as it runs.
    Case{"{% set n = namespace(go=true) %}{% for i in [1, 2, 3] if n.go %}{{ i }}{% set n.go = i < "
         "2 %}"
         "{% endfor %}",
         "12"},
    Case{"{% set a, b = 1, 'x' %}{{ b }}{{ a }}", "x1"},
    Case{"{% set a %} x {% endset %}[{{ a }}]", "[ x ]"},
    Case{"{% set a | trim | upper %} x {% endset %}[{{ a }}]", "[X]"},
    Case{"{% filter upper|replace('B', 'c') %}ab{{ 'é' }}{% endfilter %}", "AcÉ"},
    Case{"{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "12"},
    Case{"{% generation %}x{% endgeneration %}y", "xy"},
    Case{"{% macro m(a, b='z') %}<{{ a }}{{ b }}>{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}{{ m() }}",
         "<1z><12><z>"},
    Case{"{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
         "3210"},
    Case{"{% set g = 1 %}{% macro m() %}{{ g }}{{ i }}{% endmacro %}{% set g = 2 %}"
         "{% for i in [5] %}{{ m() }}{% endfor %}",
         "2"},
    Case{"{{ m }}{% macro m(a) %}{% endmacro %}", ""},
    Case{"{{ range(3)|list }} {{ range(5, 1, -2)|list }} {{ dict(a=1) }} {{ dict([('b', 2)], c=3) "
         "}}",
         "[0, 1, 2] [5, 3] {'a': 1} {'b': 2, 'c': 3}"});

NIBBLE_CASES(
    Filters,
    Case{"{{ ' a '|trim }} {{ 'xax'|trim('x') }} {{ 3|string + '' }} {{ '\\u3000a\\x1c'|trim }}",
         "a a 3 a"},
    Case{"{{ 'Hé'|upper }} {{ 'HÉ'|lower }} {{ 'ab-cd (ef'|title }} {{ 'aBC'|capitalize }}",
         "HÉ hé Ab-Cd (Ef Abc"},
    Case{"{{ 'ß'|upper }} {{ 'ΟΔΟΣ'|lower }} {{ 'ǆ'.title() }} {{ \"it's ok\".title() }}",
         "SS οδος ǅ It'S Ok"},
    Case{"{{ 'Hé🙂'|length }} {{ d|length }} {{ x|length }} {{ d|count }}", "3 4 0 4"},
    Case{"{{ x|default('a') }} {{ ''|d('b') }}|{{ ''|d('b', true) }} {{ none|default('c', "
         "boolean=true) }}",
         "a |b c"},
    Case{"{{ [3, 1]|first }}{{ [3, 1]|last }}{{ []|first }}|{{ d|first }}{{ 'é'|last }}", "31|aé"},
    Case{"{{ [1, 'a', none]|join }} {{ [1, 2]|join(', ') }} {{ messages|join('+', "
         "attribute='role') }}",
         "1aNone 1, 2 system+user+assistant"},
    Case{"{{ 'aaa'|replace('a', 'b', 2) }} {{ 'ab'|replace('', '-') }} {{ 12|replace(1, 3) }}",
         "bba -a-b- 32"},
    Case{"{{ '12'|int }} {{ ' -1_0 '|int }} {{ '4.9'|int }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ "
         "3.9|int }}",
         "12 -10 4 0 7 3"},
    Case{"{{ '1.5'|float }} {{ 'x'|float }} {{ 2|float }} {{ ' inf '|float }} {{ '1e400'|float }}",
         "1.5 0.0 2.0 inf inf"},
    Case{"{{ messages|map(attribute='role')|list }} {{ ['a']|map('upper')|join }}",
         "['system', 'user', 'assistant'] A"},
    Case{"{{ [{'a': {'b': 1}}, {}]|map(attribute='a', default='-')|list }}", "[{'b': 1}, '-']"},
    Case{"{{ [{'a': {'b': 1}}]|map(attribute='a.b')|list }} {{ [[5, 6]]|map(attribute=1)|list }}",
         "[1] [6]"},
    Case{"{{ messages|selectattr('role', 'in', ['user'])|map(attribute='content')|first }}", "Hi"},
    Case{"{{ messages|rejectattr('role', '==', 'user')|list|length }} {{ [0, 1, none]|select|list "
         "}}",
         "2 [1]"},
    Case{"{{ [1, 'a', 2]|select('number')|list }} {{ [1, 2, 3]|reject('gt', 1)|list }}",
         "[1, 2] [1]"},
    Case{"{{ [2, 3, 1]|sort }} {{ ['b', 'A']|sort }} {{ ['b', 'A']|sort(case_sensitive=true, "
         "reverse=true) }}",
         "[1, 2, 3] ['A', 'b'] ['b', 'A']"},
    Case{"{{ {'b': 1, 'a': 2}|dictsort }} {{ ['a', 'A', 'b']|unique|list }}",
         "[('a', 2), ('b', 1)] ['a', 'b']"},
    Case{"{{ [1, 2]|reverse|list }} {{ 'é🙂'|reverse }} {{ {'a': 1}|items|list }} {{ "
         "x|items|list }}",
         "[2, 1] 🙂é [('a', 1)] []"},
    Case{"{{ 'a\nb\n\nc'|indent }}", "a\n    b\n\n    c"},
    Case{"{{ 'a\n\nc'|indent('> ', first=true, blank=true) }}", "> a\n> \n> c"},
    Case{"{{ '<b>'|safe }}{{ none|safe }}", "<b>None"},
    // A generator is used up.
    Case{"{% set g = [1, 2, 3]|select %}{{ g|first }}{{ g|list }}{{ g|list }}{{ 'y' if g }}",
         "1[2, 3][]y"});

NIBBLE_CASES(Json,
             Case{"{{ d|tojson }}", R"({"a": 1, "b": [1, 2.5, null, "x"], "items": 3, "é": {}})"},
             Case{"{{ '<&>\\'\"\\\\\\n\\x01é🙂'|tojson }}", R"("<&>'\"\\\n\u0001é🙂")"},
             Case{"{{ 'é🙂'|tojson(ensure_ascii=true) }}", R"("\u00e9\ud83d\ude42")"},
             Case{"{{ [1, {'a': []}]|tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": []\n  }\n]"},
             Case{"{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, separators=(',', ':')) }}",
                  R"({"a":2,"b":1})"},
             Case{"{{ {1: 2, none: 3, true: 4}|tojson }} {{ (1, 2)|tojson }} {{ 1e20|tojson }}",
                  R"({"1": 4, "null": 3} [1, 2] 1e+20)"});

NIBBLE_CASES(
    Methods,
    Case{"[{{ ' a '.strip() }}] [{{ 'xay'.lstrip('xy') }}] [{{ 'xay'.rstrip('xy') }}]",
         "[a] [ay] [xa]"},
    Case{"{{ ' a  b '.split() }} {{ 'a,b,'.split(',') }} {{ 'a b c'.split(' ', 1) }} {{ ''.split() "
         "}}",
         "['a', 'b'] ['a', 'b', ''] ['a', 'b c'] []"},
    Case{"{{ 'a b  c '.split(none, 1) }} {{ 'a b  c'.rsplit(none, 1) }} {{ 'abab'.rsplit('ab', 1) "
         "}}",
         "['a', 'b  c '] ['a b', 'c'] ['ab', '']"},
    Case{"{{ 'a\\r\\nb\\x0bc\\n'.splitlines() }} {{ 'a\\n'.splitlines(true) }}",
         "['a', 'b', 'c'] ['a\\n']"},
    Case{"{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.startswith('') }}",
         "True True True"},
    Case{"{{ 'é🙂b'.find('b') }} {{ 'a'.find('b') }} {{ 'aaa'.count('aa') }} {{ 'ab'.index('b') "
         "}}",
         "2 -1 1 1"},
    Case{"{{ '-'.join(['a', 'b']) }} {{ 'abc'.removeprefix('a').removesuffix('c') }} {{ ' "
         "'.isspace() }}",
         "a-b b True"},
    Case{"{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ {'a': 1}.copy() }}", "2 1 {'a': 1}"});

NIBBLE_CASES(
    Tests,
    Case{"{{ x is defined }} {{ x is not defined }} {{ none is none }} {{ d.q is undefined }}",
         "False True True True"},
    Case{"{{ 'a' is string }} {{ d is mapping }} {{ d is iterable }} {{ 'a' is iterable }} {{ 3 is "
         "iterable }}",
         "True True True True False"},
    Case{"{{ true is number }} {{ true is integer }} {{ 1.0 is float }} {{ 1 is boolean }} {{ x is "
         "iterable }}",
         "True False True False True"},
    Case{"{{ true is true }} {{ 1 is true }} {{ false is false }} {{ 0 is false }} {{ [] is "
         "sequence }}",
         "True False True False True"},
    Case{"{{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ 1 is in [1] }} {{ 1 is not in [1] }} {{ 1 is "
         "eq 1 }}",
         "True True True False True"},
    Case{"{{ none is sameas none }} {{ 1 is sameas true }} {{ namespace is callable }} {{ d is "
         "callable }}",
         "True False True False"});

}  // namespace
}  // namespace nibble
