// config.json and tokenizer_config.json as far as this folder reads them.
#include <cstddef>
#include <cstdint>

#include "src/checkpoint/hf_checkpoint.h"
#include "src/checkpoint/quantization_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto json =
      nibble::ParseJson(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!json) return 0;
  if (const auto config = nibble::ParseQuantizationConfig(*json, "fuzz"); config && *config) {
    // What is accepted means the same when it is written and read again.
    nibble::Json again;
    again["quantization_config"] = (*config)->ToJson();
    const auto second = nibble::ParseQuantizationConfig(again, "fuzz");
    CHECK(second && *second, "{}", again.dump(-1, ' ', true));
    CHECK((*second)->layout == (*config)->layout && (*second)->spec == (*config)->spec);
    CHECK((*second)->modules_to_not_convert == (*config)->modules_to_not_convert);
    CHECK((*second)->only_modules == (*config)->only_modules);
    (*config)->Covers("model.layers.0.self_attn.q_proj");
  }
  if (const auto chats = nibble::ChatTemplatesOf(*json, "fuzz")) {
    for (const nibble::NamedChatTemplate& chat : *chats) {
      CHECK(chat.name.size() + chat.jinja.size() <= size);
    }
  }
  return 0;
}
