#!/usr/bin/env python3
"""Renders chat templates with Python's jinja2, to check nibble's interpreter against.

usage: make_chat_vectors.py DIRECTORY [TEMPLATE_FILE...]
(needs jinja2 3.1; uses transformers where installed)

DIRECTORY gets one .jsonl file for each template of chat_templates/, each family that nibble knows
(family-NAME, read from src/tokenizer/chat_template_families.cc) and each TEMPLATE_FILE, one
("expressions") of small templates with random expressions, and one ("unicode") of case mappings
over all of Unicode. A line {"template": TEXT} sets the template of the lines behind it, which are cases:
{"messages": [...], "add_generation_prompt": BOOL, "bos_token": TEXT or null, "eos_token": ...,
"now": [year, month, day, hour, minute, second] or null, "variables": {...},
"expected": TEXT or null where rendering raises}.
"""
import copy
import datetime
import json
import os
import random
import re
import sys
import warnings

import jinja2
import jinja2.ext
import jinja2.sandbox

CASES_PER_TEMPLATE = 400
EXPRESSIONS = 8000
NOW = (2024, 7, 5, 9, 3, 0)


def compile_as_transformers_does(text):
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template
        return _compile_jinja_template(text)
    except ImportError:
        pass

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    class Generation(jinja2.ext.Extension):
        """{% generation %}: marks text for training, and changes nothing in it."""
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)


def render(template, case):
    # Copies, because a filter of jinja2's changes a list that it is given (indent).
    case = copy.deepcopy(case)
    variables = {"tools": None, "documents": None, **case["variables"]}
    for name in ("bos_token", "eos_token"):
        if case[name] is not None:
            variables[name] = case[name]
    if case["now"] is not None:
        now = datetime.datetime(*case["now"])
        variables["strftime_now"] = lambda form: now.strftime(form)
    else:
        template.environment.globals.pop("strftime_now", None)
        template.globals.pop("strftime_now", None)
    try:
        return template.render(messages=case["messages"],
                               add_generation_prompt=case["add_generation_prompt"], **variables)
    except Exception:  # Whatever Python raises is a failure to render.
        return None


def case(messages, prompt=False, bos="<s>", eos="</s>", now=NOW, **variables):
    return {"messages": messages, "add_generation_prompt": prompt, "bos_token": bos,
            "eos_token": eos, "now": now, "variables": variables}


WORDS = ["Hello", "world", "it's", '"quoted"', "naïve", "日本語", "🙂", "👩‍👩‍👧", "a\u0301", "<b>&amp;</b>",
         "{{ no }}", "{% raw %}", "\\n", "1 + 1 = 2", "\u00a0", "\u2028", "\t", "\n", "\n\n", "  ",
         "", "<think>", "</think>", "<tool", "[INST]", "</s>", "\x7f", "\u200b", "ß", "ΟΔΟΣ", "ǅ",
         "\x1c", "\x85", "C:\\dir", "'", "\U0001f3f4\U000e0067"]
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Weather of a city, \"now\" or later — 天気",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "stop", "parameters": {}, "scores": [1.5, -2e30, None]}}]


def random_text(rng):
    text = "".join(rng.choice(WORDS) + rng.choice(["", " ", " "]) for _ in range(rng.randint(0, 7)))
    if rng.random() < 0.2:
        text = rng.choice(["  ", "\n", "\t", "\u3000"]) + text + rng.choice(["\n", " ", "\r\n"])
    return text


FUNCTIONS = [
    {"name": "book", "description": "Books a room.\nAt once.", "return": {"type": "string"},
     "parameters": {"type": "object", "required": ["nights"], "properties": {
         "nights": {"type": "integer"}, "kind": {"enum": ["single", "döuble", 3, None]},
         "guests": {"type": "array", "items": {"type": "object", "properties": {
             "name": {"type": "string"}, "age": {"anyOf": [{"type": "number"}, {"type": "null"}]}}}},
         "any": {}, "list": {"type": "array"}}}}]
ARGUMENTS = [{}, {"city": "Zürich", "days": 2}, {"query": 'a "b" \\ <c>', "deep": {"x": [1.5, None, True, {}]}},
             {"text": "line\nline", "n": -0.0, "big": 1e22}, "already text", '{"a": 1}']


def random_call(rng):
    call = {"type": "function", "function": {
        "name": rng.choice(["get_weather", "book", "brave_search", "é"]), "arguments": rng.choice(ARGUMENTS)}}
    if rng.random() < 0.8:
        call["id"] = rng.choice(["abcdefghi", "123456789", "123456789", "short", ""])
    return call if rng.random() < 0.9 else call["function"]


def random_parts(rng):
    return [rng.choice([{"type": "text", "text": random_text(rng)}, {"type": "text", "text": "x"},
                        {"type": "image"}]) for _ in range(rng.randint(0, 3))]


def random_tool_talk(rng):
    """A conversation in which functions are called."""
    messages = [{"role": "system", "content": random_text(rng)}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": random_text(rng)})
        if rng.random() < 0.8:
            calls = [random_call(rng) for _ in range(rng.choice([1, 1, 1, 2, 0]))]
            message = {"role": "assistant", "content": rng.choice([None, "", random_text(rng)]),
                       "tool_calls": calls}
            if rng.random() < 0.3:
                del message["content"]
            messages.append(message)
            for call in calls:
                content = rng.choice([random_text(rng), '{"t": 21.5}', {"content": 21.5, "unit": "°C"}, "ok", [1, 2]])
                answer = {"role": rng.choice(["tool", "tool", "tool", "ipython", "tool_results"]), "content": content}
                if rng.random() < 0.8:
                    answer["tool_call_id"] = call.get("id", "123456789")
                messages.append(answer)
        messages.append({"role": "assistant", "content": random_text(rng)})
    if rng.random() < 0.5:
        messages.pop()
    return messages


def random_odd_messages(rng):
    """Members that few have: parts, names, thoughts; or none where there should be one."""
    messages = random_messages(rng, plain=True)
    for message in messages:
        odd = rng.random()
        if odd < 0.3:
            message["content"] = random_parts(rng)
        elif odd < 0.35:
            message["content"] = rng.choice([None, 3, {"text": "t", "n": 1}])
        elif odd < 0.4:
            del message["content"]
        if rng.random() < 0.3:
            message["name"] = rng.choice(["ann_lee", "Bo", ""])
        if message["role"] == "assistant" and rng.random() < 0.4:
            message["reasoning_content"] = rng.choice([None, "", " because\n", random_text(rng)])
    return messages


def random_messages(rng, plain=False):
    if not plain:
        kind = rng.random()
        if kind < 0.2:
            return random_tool_talk(rng)
        if kind < 0.3:
            return random_odd_messages(rng)
    count = rng.choice([0, 1, 1, 2, 3, 4, 5, 8])
    messages = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": random_text(rng)})
    if rng.random() < 0.75:
        for i in range(count):
            messages.append({"role": "assistant" if i % 2 else "user", "content": random_text(rng)})
    else:
        roles = ["user", "assistant", "system", "tool", "ipython", "", "User", "Küchenhilfe"]
        for _ in range(count):
            messages.append({"role": rng.choice(roles), "content": random_text(rng)})
    return messages


def random_case(rng):
    variables = {}
    if rng.random() < 0.3:
        variables["tools"] = rng.choice([TOOLS, TOOLS[:1], [], [TOOLS[0], {"type": "function", "function": FUNCTIONS[0]}],
                                         FUNCTIONS])
    if rng.random() < 0.1:
        variables["builtin_tools"] = rng.choice([["code_interpreter", "brave_search"], [], ["brave_search"]])
    if rng.random() < 0.05:
        variables["custom_tools"] = FUNCTIONS
    if rng.random() < 0.1:
        variables["documents"] = [{"title": "T", "text": "Some text"}, {"text": "untitled ä"}][:rng.randint(0, 2)]
    if rng.random() < 0.2:
        variables["tools_in_user_message"] = rng.random() < 0.5
    if rng.random() < 0.2:
        variables["enable_thinking"] = rng.random() < 0.5
    if rng.random() < 0.1:
        variables["date_string"] = "1 Jan 2030"
    return case(random_messages(rng), rng.random() < 0.6,
                rng.choice(["<s>", "<|begin_of_text|>", "", None]),
                rng.choice(["</s>", "<|eot_id|>", None]), rng.choice([NOW, NOW, None]), **variables)


# Expressions over a fixed set of variables. Only what both sides support is made, but it is put
# together without regard for types, so that many of them raise.
ATOMS = ["0", "1", "2", "-1", "7", "2.5", "1e20", "0.1", "true", "false", "none", "''", "'a'", "'abc'",
         "'ä🙂z'", "' x y '", "'1'", "'4.5'", "[]", "[1, 2, 3]", "['b', 'A', 'c']", "(1, 2)", "('x',)",
         "{}", "{'a': 1, 'b': none}", "{1: 'one', 'get': 2}", "missing", "messages", "messages[0]",
         "messages[-1]['content']", "messages[0].role", "n", "text", "items", "nested", "nested.a.b",
         "nested['list'][1]", "ns.x", "ns.missing", "range(3)|list", "(range(5, 0, -2)|list)", "bos_token",
         "nested.items()|list", "nested.keys()|list", "'it\\'s'", "\"d\\\"q\"", "'\\n\\t\\\\'", "messages|first",
         "dict(a=1)", "(5 is odd)", "(text is string)"]
FILTERS = ["trim", "length", "count", "tojson", "upper", "lower", "default('d')", "d('e', true)", "first",
           "last", "join", "join(', ')", "replace('a', 'bb')", "replace('', '-')", "list", "string",
           "int", "int(9)", "float", "title", "capitalize", "reverse|list", "items|list", "abs",
           "map('upper')|list", "map(attribute='role')|list", "map(attribute='x', default='y')|join",
           "selectattr('role', 'equalto', 'user')|list", "rejectattr('content')|list|length",
           "select('string')|list", "reject('none')|list", "select|list", "sort", "sort(reverse=true)",
           "unique|list", "dictsort", "tojson(indent=2)", "tojson(indent=0)", "trim('a ')",
           "indent", "indent(2, true)", "tojson(ensure_ascii=true)", "tojson(sort_keys=true)",
           "tojson(separators=(',', ':'))", "map('string')|join('|')", "select('gt', 1)|list",
           "replace('b', '<', 1)", "map(attribute='0')|list"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping",
         "iterable", "sequence", "true", "false", "odd", "even", "divisibleby 2", "divisibleby(3)",
         "eq 1", "ne 'a'", "in [1, 'a']", "gt 1", "lessthan 3", "sameas none", "callable",
         "not defined", "not string", "not in 'abc'"]
METHODS = ["strip()", "lstrip()", "rstrip('z ')", "split()", "split(' ')", "split('b', 1)",
           "rsplit(' ', 1)", "rsplit(none, 1)", "splitlines()", "startswith('a')", "endswith(('c', 'z'))",
           "replace('a', 'x')", "replace('', '.', 2)", "upper()", "lower()", "title()", "capitalize()",
           "find('b')", "count('a')", "join(['p', 'q'])", "get('a')", "get('zz', 5)", "items()|list",
           "keys()|list", "values()|list", "index(2)", "count(1)", "removeprefix('a')", "isspace()",
           "removesuffix('c')", "index('b')", "split(maxsplit=1)"]
SUBSCRIPTS = ["[0]", "[-1]", "[5]", "['a']", "['role']", ".a", ".role", ".0", "[1:]", "[:-1]", "[::2]",
              "[::-1]", "[-2:]", "[1:2]", "[:100]", "[3:1]", "[none:1]", "['items']", ".missing", "[true]",
              "[2:0:-1]"]
BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and",
          "or", "**"]


def random_expression(rng, depth):
    if depth <= 0 or rng.random() < 0.12:
        return rng.choice(ATOMS)
    inner = random_expression(rng, depth - 1)
    kind = rng.randint(0, 9)
    if kind <= 1:
        return f"{inner}|{rng.choice(FILTERS)}"
    if kind == 2:
        return f"(({inner}) is {rng.choice(TESTS)})"
    if kind == 3:
        return f"({inner}).{rng.choice(METHODS)}"
    if kind == 4:
        return f"({inner}){rng.choice(SUBSCRIPTS)}"
    other = random_expression(rng, depth - 2)
    if kind <= 6:
        return f"{inner} {rng.choice(BINARY)} {other}"
    if kind == 7:
        return f"({inner} if {other} else {random_expression(rng, depth - 2)})"
    if kind == 8:
        return rng.choice([f"(not {inner})", f"-{inner}", f"[{inner}, {other}]", f"({inner}, {other})",
                           f"{{'k': {inner}, 'l': {other}}}", f"({inner})"])
    return f"{inner} {rng.choice(['<', '==', '>', 'in'])} {other} {rng.choice(['<', '!='])} {inner}"


BODIES = ["{{ %s }}", "{%% if %s %%}yes{%% else %%}no{%% endif %%}", "{%% set v = %s %%}{{ v }}",
          "{%% for i in %s %%}{{ loop.index }}:{{ i }}{{ ',' if not loop.last }}{%% else %%}none{%% endfor %%}",
          "{%% for i in %s if i %%}{{ i }}/{{ loop.length }}{%% endfor %%}",
          "{%% set ns.x = %s %%}{{ ns.x }}", "{%% filter upper %%}{{ %s }}{%% endfilter %%}",
          "{%% with w = %s %%}{{ w }}{%% endwith %%}", "{%% macro m(a, b=2) %%}{{ a }}{{ b }}{%% endmacro %%}{{ m(%s) }}",
          "{%% set v %%}{{ %s }}{%% endset %%}[{{ v|length }}]", "{{ (%s)|tojson }}", "{{ (%s) is defined }}"]
# What differs from run to run, or is refused on purpose: text of functions, generators, ranges.
UNCOMPARABLE = ("<generator", " object at 0x", "<bound method", "<built-in", "<function", "range(")


def expression_environment():
    """Without what only this file would meet: jinja2 evaluates constant slices by other rules than
    the rest, and % formats text, which nibble refuses."""
    environment = compile_as_transformers_does("").environment
    environment.intercepted_binops = frozenset(["%"])
    getitem = environment.getitem

    def call_binop(context, operator, left, right):
        if isinstance(left, str):
            raise TypeError("% of text")
        return left % right

    environment.call_binop = call_binop
    environment.getitem = lambda object, argument: (
        object[argument] if isinstance(argument, slice) else getitem(object, argument))
    return environment


def expression_cases(rng):
    setup = ("{% set ns = namespace(x=3) %}{% set n = 4 %}{% set text = 'Some text' %}"
             "{% set items = ['x', 'y', 'z'] %}")
    variables = {"nested": {"a": {"b": "deep"}, "list": [1, "two", 3.0, None], "é": "ü", "n": -7}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " ok\n"}]
    lines = []
    environment = expression_environment()
    while len(lines) < 2 * EXPRESSIONS:
        text = setup + rng.choice(BODIES) % random_expression(rng, rng.randint(1, 4))
        one = case(messages, **variables)
        try:
            template = environment.from_string(text)
        except jinja2.exceptions.TemplateError:
            continue
        one["expected"] = render(template, one)
        if one["expected"] is not None and (
                any(mark in one["expected"] for mark in UNCOMPARABLE) or len(one["expected"]) > 5000
                or any(run.isdigit() and len(run) > 18 for run in one["expected"].split())):
            continue
        lines.append({"template": text})
        lines.append(one)
    return lines


def unicode_cases():
    text = ("{% for m in messages %}{{ m.content.upper() }}|{{ m.content.lower() }}|{{ m.content.title() }}|"
            "{{ m.content.capitalize() }}|{{ m.content.strip() }}|{{ [m.content] }}|{{ m.content|title }}|"
            "{{ m.content.splitlines()|length }}|{{ m.content.split()|length }}\n{% endfor %}")
    template = compile_as_transformers_does(text)
    import unicodedata
    lines = [{"template": text}]
    # Characters that are older than every library in use, so that versions of Unicode do not matter.
    old = [chr(c) for c in range(0x110000)
           if not 0xD800 <= c < 0xE000 and unicodedata.ucd_3_2_0.category(chr(c)) != "Cn"
           and unicodedata.ucd_3_2_0.category(chr(c)) == unicodedata.category(chr(c))
           and not 0x3400 <= c < 0xA000 and not 0xAC00 <= c < 0xD7A4 and not 0x20000 <= c < 0x2FA00
           and not 0xE000 <= c < 0xF900 and not 0xF0000 <= c]
    for start in range(0, len(old), 64):
        one = case([{"role": "user", "content": f"x{c}y {c}z{c}"} for c in old[start:start + 64]])
        one["expected"] = render(template, one)
        lines.append(one)
    return lines


def write(directory, name, lines):
    with open(os.path.join(directory, name + ".jsonl"), "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
    raising = sum(1 for line in lines if line.get("expected", "") is None)
    print(f"{name}: {sum(1 for line in lines if 'messages' in line)} cases, {raising} raise")


def templates(files):
    """(name, text): the fixtures', the families', and those of further files."""
    here = os.path.dirname(os.path.abspath(__file__))
    fixtures = os.path.join(here, "chat_templates")
    for path in [os.path.join(fixtures, name) for name in sorted(os.listdir(fixtures))] + files:
        with open(path, encoding="utf-8", newline="") as file:
            yield os.path.splitext(os.path.basename(path))[0], file.read()
    source = os.path.join(here, "..", "..", "src", "tokenizer", "chat_template_families.cc")
    with open(source, encoding="utf-8") as file:
        families = re.findall(r'constexpr std::string_view k(\w+) = R"jinja\((.*?)\)jinja";', file.read(), re.DOTALL)
    assert len(families) > 5, f"{source}: the families are written in another way"
    for name, text in families:
        yield "family-" + name, text


def main():
    directory = sys.argv[1]
    warnings.simplefilter("ignore", SyntaxWarning)  # about subscripts of what has none, made on purpose
    os.makedirs(directory, exist_ok=True)
    for index, (name, text) in enumerate(templates(sys.argv[2:])):
        rng = random.Random(index)
        lines = [{"template": text}]
        for _ in range(CASES_PER_TEMPLATE):
            one = random_case(rng)
            one["expected"] = render(compile_as_transformers_does(text), one)
            lines.append(one)
        write(directory, name, lines)
    write(directory, "expressions", expression_cases(random.Random(7)))
    write(directory, "unicode", unicode_cases())


if __name__ == "__main__":
    main()
