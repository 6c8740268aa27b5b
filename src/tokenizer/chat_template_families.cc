#include "src/tokenizer/chat_template_families.h"

#include <algorithm>

#include "src/base/file.h"

namespace nibble {
namespace {

// make_chat_vectors.py reads these, too: one raw string each.

constexpr std::string_view kChatMl = R"jinja(
{%- for message in messages %}
  {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
)jinja";

constexpr std::string_view kLlama2 = R"jinja(
{#- The system message is part of the first question. #}
{%- set system, turns = none, messages %}
{%- if messages and messages[0].role == 'system' %}
  {%- set system, turns = messages[0].content, messages[1:] %}
{%- endif %}
{%- for turn in turns %}
  {%- if turn.role != ('user' if loop.index0 is even else 'assistant') %}
    {{- raise_exception('after a system message, if any, user and assistant take turns') }}
  {%- elif turn.role == 'assistant' %}
    {{- ' ' ~ turn.content|trim ~ ' ' ~ eos_token }}
  {%- else %}
    {%- set question = turn.content %}
    {%- if loop.first and system is not none %}
      {%- set question = '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' ~ question %}
    {%- endif %}
    {{- bos_token ~ '[INST] ' ~ question|trim ~ ' [/INST]' }}
  {%- endif %}
{%- endfor %}
)jinja";

constexpr std::string_view kLlama3 = R"jinja(
{%- for message in messages %}
  {%- if loop.first %}{{ bos_token }}{% endif %}
  {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' }}
  {{- message.content|trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
)jinja";

constexpr std::string_view kLlama31 = R"jinja(
{#- There is always a system message, and it begins with two dates. #}
{%- macro turn(role, content) %}
  {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' ~ content|trim ~ '<|eot_id|>' }}
{%- endmacro %}
{%- set system, turns = '', messages %}
{%- if messages and messages[0].role == 'system' %}
  {%- set system, turns = messages[0].content|trim, messages[1:] %}
{%- endif %}
{{- bos_token ~ '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Cutting Knowledge Date: December 2023\n' }}
{{- 'Today Date: ' ~ date_string|default('26 Jul 2024') ~ '\n\n' ~ system ~ '<|eot_id|>' }}
{%- for message in turns %}{{ turn(message.role, message.content) }}{% endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
)jinja";

// Mistral's models were trained on two forms. The first (7B v0.1 and v0.2) has the system message
// with the first question and a space before [/INST]; version 3 (7B v0.3) has it with the last
// question, and no such space. They are kept as two whole templates because clients may be given
// their text.
constexpr std::string_view kMistral = R"jinja(
{%- set lead, turns = '', messages %}
{%- if messages and messages[0].role == 'system' %}
  {%- set lead, turns = messages[0].content ~ '\n\n', messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
  {%- if turn.role != loop.cycle('user', 'assistant') %}
    {{- raise_exception('after a system message, if any, user and assistant take turns') }}
  {%- elif turn.role == 'user' %}
    {{- '[INST] ' ~ (lead if loop.first else '') ~ turn.content ~ ' [/INST]' }}
  {%- else %}
    {{- ' ' ~ turn.content|trim ~ eos_token }}
  {%- endif %}
{%- endfor %}
)jinja";

constexpr std::string_view kMistral3 = R"jinja(
{%- set lead, turns = '', messages %}
{%- if messages and messages[0].role == 'system' %}
  {%- set lead, turns = messages[0].content ~ '\n\n', messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
  {%- if turn.role != loop.cycle('user', 'assistant') %}
    {{- raise_exception('after a system message, if any, user and assistant take turns') }}
  {%- elif turn.role == 'user' %}
    {{- '[INST] ' ~ (lead if loop.last else '') ~ turn.content ~ '[/INST]' }}
  {%- else %}
    {{- ' ' ~ turn.content|trim ~ eos_token }}
  {%- endif %}
{%- endfor %}
)jinja";

constexpr std::string_view kQwen25 = R"jinja(
{%- if not messages or messages[0].role != 'system' %}
  {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. ' }}
  {{- 'You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
  {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
)jinja";

constexpr std::string_view kSmolLm2 = R"jinja(
{%- if messages and messages[0].role != 'system' %}
  {{- '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, ' }}
  {{- 'trained by Hugging Face<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
  {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
)jinja";

constexpr std::string_view kZephyr = R"jinja(
{%- for message in messages %}
  {%- if message.role not in ['system', 'user', 'assistant'] %}
    {{- raise_exception('the roles are system, user and assistant') }}
  {%- endif %}
  {{- '<|' ~ message.role ~ '|>\n' ~ message.content ~ eos_token ~ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
)jinja";

constexpr ChatTemplateFamily kChatFamilies[] = {
    {"chatml", kChatMl},    {"llama2", kLlama2},       {"llama3", kLlama3},  {"llama3.1", kLlama31},
    {"mistral", kMistral},  {"mistral-v3", kMistral3}, {"qwen2.5", kQwen25}, {"smollm2", kSmolLm2},
    {"tinyllama", kZephyr}, {"zephyr", kZephyr},
};

template <typename Entries>
const auto* FindNamed(const Entries& entries, std::string_view name) {
  const auto it = std::find_if(entries.begin(), entries.end(),
                               [&](const auto& entry) { return entry.name == name; });
  return it == entries.end() ? nullptr : &*it;
}

template <typename Entries>
std::string JoinNames(const Entries& entries) {
  std::string names;
  for (const auto& entry : entries) {
    if (!names.empty()) names += ", ";
    names += entry.name;
  }
  return names;
}

}  // namespace

std::span<const ChatTemplateFamily> ChatTemplateFamilies() { return kChatFamilies; }

Status AddChatTemplate(NamedChatTemplate added, std::string_view source,
                       std::vector<NamedChatTemplate>& templates) {
  if (templates.size() == kMaxChatTemplates) {
    return BadInput("{}: more than {} chat templates", source, kMaxChatTemplates);
  }
  if (FindNamed(templates, added.name) != nullptr) {
    return BadInput("{}: two chat templates are named \"{}\"", source, added.name);
  }
  templates.push_back(std::move(added));
  return {};
}

Result<ChatTemplate> ChooseChatTemplate(const std::string& choice,
                                        std::span<const NamedChatTemplate> of_model,
                                        std::string_view model) {
  if (choice.empty()) {
    if (const NamedChatTemplate* own = FindNamed(of_model, "default")) {
      return ChatTemplate::Parse(own->jinja, fmt::format("{}: the chat template", model));
    }
    if (of_model.empty()) {
      return BadInput("{}: the model has no chat template; --chat-template gives it one", model);
    }
    return BadInput("{}: no chat template is named \"default\"; --chat-template chooses among {}",
                    model, JoinNames(of_model));
  }
  if (const ChatTemplateFamily* family = FindNamed(ChatTemplateFamilies(), choice)) {
    return ChatTemplate::Parse(family->jinja, fmt::format("the chat template {}", choice));
  }
  if (const NamedChatTemplate* own = FindNamed(of_model, choice)) {
    return ChatTemplate::Parse(own->jinja,
                               fmt::format("{}: the chat template \"{}\"", model, choice));
  }
  if (!FileExists(choice)) {
    return BadInput("--chat-template {}: neither a file, nor one of {}{}{}", choice,
                    JoinNames(ChatTemplateFamilies()),
                    of_model.empty() ? "" : ", nor the model's own ", JoinNames(of_model));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(choice, kMaxChatTemplateBytes));
  return ChatTemplate::Parse(text, choice);
}

}  // namespace nibble
