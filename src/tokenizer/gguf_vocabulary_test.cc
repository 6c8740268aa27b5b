#include "src/tokenizer/gguf_vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/tokenizer/tokenizer.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

GgufVocabulary ByteLevel() {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "smollm";
  vocabulary.tokens = {"<|end|>", "a", "b", "ab", "1", "Ġ", "<tool>", "[PAD7]"};
  vocabulary.merges = {"a b"};
  vocabulary.types = {3, 1, 1, 1, 1, 1, 4, 5};
  vocabulary.eos_token_id = 0;
  vocabulary.bos_token_id = 0;
  vocabulary.chat_template = "{{ messages }}";
  return vocabulary;
}

GgufVocabulary SentencePiece() {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "<s>", "</s>"};
  vocabulary.types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    vocabulary.types.push_back(6);
  }
  for (const char* token : {"▁", "a", "b", "ab", "▁a"}) {
    vocabulary.tokens.emplace_back(token);
    vocabulary.types.push_back(1);
  }
  vocabulary.scores.assign(vocabulary.tokens.size(), 0);
  vocabulary.scores[262] = -2;  // ab
  vocabulary.scores[263] = -1;  // ▁a comes first
  vocabulary.bos_token_id = 1;
  vocabulary.eos_token_id = 2;
  return vocabulary;
}

std::unique_ptr<Tokenizer> Make(const GgufVocabulary& vocabulary) {
  const auto files = TokenizerFilesFromGguf(vocabulary, "file");
  if (!files) {
    ADD_FAILURE() << files.error().message();
    return nullptr;
  }
  auto tokenizer = TokenizerFromJson(files->tokenizer_json, files->tokenizer_config, "file");
  if (!tokenizer) ADD_FAILURE() << tokenizer.error().message();
  return tokenizer ? std::move(*tokenizer) : nullptr;
}

std::string Problem(const GgufVocabulary& vocabulary) {
  const auto files = TokenizerFilesFromGguf(vocabulary, "file");
  return files ? "none" : files.error().message();
}

TEST(GgufVocabulary, ByteLevel) {
  const auto tokenizer = Make(ByteLevel());
  EXPECT_THAT(tokenizer->Encode("ab 11<tool><|end|>", SpecialTokens::kAdd),
              ElementsAre(3, 5, 4, 4, 6, 0));
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->eos(), 0);
  EXPECT_EQ(tokenizer->vocabulary_size(), 8);
  const auto files = TokenizerFilesFromGguf(ByteLevel(), "file");
  EXPECT_EQ(files->tokenizer_config["chat_template"], "{{ messages }}");
  EXPECT_EQ(files->tokenizer_config["bos_token"], "<|end|>");
}

TEST(GgufVocabulary, TheFileDecidesOverBosAndEos) {
  GgufVocabulary vocabulary = ByteLevel();
  vocabulary.pre = "llama-bpe";
  EXPECT_TRUE(Make(vocabulary)->adds_bos());  // as the name implies
  vocabulary.add_bos_token = false;
  vocabulary.add_eos_token = true;
  EXPECT_THAT(Make(vocabulary)->Encode("a", SpecialTokens::kAdd), ElementsAre(1, 0));
}

TEST(GgufVocabulary, SentencePieceMergesFollowTheScores) {
  const auto tokenizer = Make(SentencePiece());
  EXPECT_THAT(tokenizer->Encode("ab bab", SpecialTokens::kAdd),
              ElementsAre(1, 263, 261, 259, 261, 262));
  EXPECT_THAT(tokenizer->Encode("é", SpecialTokens::kOmit), ElementsAre(259, 3 + 0xC3, 3 + 0xA9));
  EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{1, 263, 261, 259, 261}), "ab b");
  GgufVocabulary without = SentencePiece();
  without.add_space_prefix = false;
  EXPECT_THAT(Make(without)->Encode("ab", SpecialTokens::kOmit), ElementsAre(262));
}

TEST(GgufVocabulary, WhatIsNotUnderstoodIsRefusedByName) {
  const auto with = [](const auto& change) {
    GgufVocabulary vocabulary = ByteLevel();
    change(vocabulary);
    return Problem(vocabulary);
  };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_THAT(with([](auto& v) { v.model = "bert"; }), HasSubstr("model: \"bert\""));
  EXPECT_THAT(with([](auto& v) { v.pre = "falcon"; }), HasSubstr("pre: \"falcon\""));
  EXPECT_THAT(with([](auto& v) { v.tokens[3] = "a"; }), HasSubstr("1 and 3 are both \"a\""));
  EXPECT_THAT(with([](auto& v) { v.tokens[3] = "\xFF"; }), HasSubstr("tokens[3] is not UTF-8"));
  EXPECT_THAT(with([](auto& v) { v.types.pop_back(); }), HasSubstr("want 8 types, got 7"));
  EXPECT_THAT(with([](auto& v) { v.types[2] = 9; }), HasSubstr("9 is not a known type"));
  EXPECT_THAT(with([](auto& v) { v.eos_token_id = 8; }), HasSubstr("eos_token_id: token 8 of 8"));
  EXPECT_THAT(with([](auto& v) { v.tokens.clear(); }), HasSubstr("got 0"));
  EXPECT_THAT(with([](auto& v) { v.merges[0] = "\xFF"; }), HasSubstr("merges[0] is not UTF-8"));
  EXPECT_THAT(with([](auto& v) { v.model = "llama"; }), HasSubstr("want 8 scores, got 0"));
}

}  // namespace
}  // namespace nibble
