#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/file.h"
#include "src/tokenizer/byte_level.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Byte-level: the 256 bytes, then "ab", "abc", " a", and two special tokens.
Json ByteLevelJson() {
  Json vocabulary = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    vocabulary[BytesToPrintable({&c, 1})] = byte;
  }
  for (const char* token : {"ab", "abc", "Ġa", "<s>"}) vocabulary[token] = vocabulary.size();
  Json json = ParseJson(R"({
    "added_tokens": [
      {"id": 259, "content": "<s>", "special": true},
      {"id": 260, "content": "<tool>", "special": false, "normalized": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [259], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "merges": ["a b", ["ab", "c"], ["Ġ", "a"]]}})",
                        "test")
                  .value();
  json["model"]["vocab"] = std::move(vocabulary);
  return json;
}

std::unique_ptr<Tokenizer> Make(const Json& json, const Json& config = Json::object()) {
  auto tokenizer = TokenizerFromJson(json, config, "file");
  if (!tokenizer) ADD_FAILURE() << tokenizer.error().message();
  return tokenizer ? std::move(*tokenizer) : nullptr;
}

std::string Problem(const Json& json, const Json& config = Json::object()) {
  const auto tokenizer = TokenizerFromJson(json, config, "file");
  return tokenizer ? "none" : tokenizer.error().message();
}

TEST(TokenizerJson, EncodesAndDecodesBytes) {
  const auto tokenizer = Make(ByteLevelJson());
  EXPECT_THAT(tokenizer->Encode("abcab a", SpecialTokens::kOmit), ElementsAre(257, 256, 258));
  EXPECT_THAT(tokenizer->Encode("é", SpecialTokens::kAdd), ElementsAre(259, 0xC3, 0xA9));
  EXPECT_THAT(tokenizer->Encode("", SpecialTokens::kAdd), ElementsAre(259));
  // Malformed UTF-8 is U+FFFD by maximal subparts.
  EXPECT_THAT(tokenizer->Encode("\xE2\x82"
                                "a",
                                SpecialTokens::kOmit),
              ElementsAre(0xEF, 0xBF, 0xBD, 'a'));
  EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{259, 257, 258, 0xC3, 0xA9, 0xC3, 9999, -1}),
            "abc aé\uFFFD");
  EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{259, 257}, SpecialText::kKeep), "<s>abc");
  EXPECT_EQ(tokenizer->vocabulary_size(), 261);
  EXPECT_EQ(tokenizer->TokenText(258), "Ġa");
  EXPECT_EQ(tokenizer->TokenBytes(258), " a");
  EXPECT_EQ(tokenizer->TokenBytes(0xC3), "\xC3");
  EXPECT_EQ(tokenizer->TokenText(5000), "");
  EXPECT_EQ(tokenizer->FindToken("abc"), 257);
  EXPECT_EQ(tokenizer->FindToken("abcd"), std::nullopt);
}

TEST(TokenizerJson, SpecialTokensInTextAreParsedOnRequest) {
  const auto tokenizer = Make(ByteLevelJson());
  EXPECT_THAT(tokenizer->Encode("a<s>b", SpecialTokens::kOmit), ElementsAre('a', 259, 'b'));
  EXPECT_THAT(tokenizer->Encode("<s>", SpecialTokens::kOmit, ParseSpecial::kNo),
              ElementsAre('<', 's', '>'));
  EXPECT_THAT(tokenizer->Encode("<tool>", SpecialTokens::kOmit, ParseSpecial::kNo),
              ElementsAre(260));
  EXPECT_TRUE(tokenizer->IsSpecial(259));
  EXPECT_FALSE(tokenizer->IsSpecial(260));
}

TEST(TokenizerJson, TheConfigurationDecidesOverBosAndEos) {
  const Json json = ByteLevelJson();
  EXPECT_TRUE(Make(json)->adds_bos());
  EXPECT_EQ(Make(json)->bos(), 259);
  EXPECT_EQ(Make(json)->eos(), std::nullopt);

  const auto silent = Make(json, {{"eos_token", "<tool>"}});
  EXPECT_TRUE(silent->adds_bos());
  EXPECT_EQ(silent->eos(), 260);
  EXPECT_TRUE(silent->IsSpecial(260));

  const auto none = Make(json, {{"add_bos_token", false}});
  EXPECT_FALSE(none->adds_bos());
  EXPECT_THAT(none->Encode("", SpecialTokens::kAdd), IsEmpty());

  const auto both = Make(json, {{"add_bos_token", true},
                                {"add_eos_token", true},
                                {"bos_token", {{"content", "<tool>"}}},
                                {"eos_token", "<s>"}});
  EXPECT_THAT(both->Encode("a", SpecialTokens::kAdd), ElementsAre(260, 'a', 259));
  EXPECT_TRUE(both->adds_eos());

  const auto more =
      Make(json, {{"added_tokens_decoder", {{"261", {{"content", "<new>"}, {"special", true}}}}}});
  EXPECT_THAT(more->Encode("<new>", SpecialTokens::kOmit), ElementsAre(261));
}

TEST(TokenizerJson, WhatIsNotUnderstoodIsRefusedByName) {
  const auto with = [](const char* pointer, const Json& value) {
    Json json = ByteLevelJson();
    json[Json::json_pointer(pointer)] = value;
    return Problem(json);
  };
  EXPECT_THAT(with("/normalizer", {{"type", "Lowercase"}}), HasSubstr("normalizer \"Lowercase\""));
  EXPECT_THAT(with("/pre_tokenizer", {{"type", "Whitespace"}}),
              HasSubstr("pre-tokenizer \"Whitespace\""));
  EXPECT_THAT(with("/post_processor", {{"type", "BertProcessing"}}),
              HasSubstr("post-processor \"BertProcessing\""));
  EXPECT_THAT(with("/decoder", {{"type", "WordPiece"}}), HasSubstr("decoder \"WordPiece\""));
  EXPECT_THAT(with("/model/type", "Unigram"), HasSubstr("type \"Unigram\""));
  EXPECT_THAT(with("/model/dropout", 0.1), HasSubstr("dropout"));
  EXPECT_THAT(with("/model/end_of_word_suffix", "</w>"), HasSubstr("end_of_word_suffix \"</w>\""));
  EXPECT_THAT(with("/model/news", 1), HasSubstr("\"news\""));
  EXPECT_EQ(with("/model/news", nullptr), "none");
  EXPECT_THAT(with("/pre_tokenizer/use_regex", 1), HasSubstr("use_regex"));
}

TEST(TokenizerJson, BrokenFilesAreRefused) {
  const auto with = [](const char* pointer, const Json& value) {
    Json json = ByteLevelJson();
    json[Json::json_pointer(pointer)] = value;
    return Problem(json);
  };
  EXPECT_THAT(with("/model/vocab/ab", 257), HasSubstr("have the same id 257"));
  EXPECT_THAT(with("/model/vocab/ab", -1), HasSubstr("\"ab\": want an id"));
  EXPECT_THAT(with("/model/vocab/ab", 1 << 30), HasSubstr("\"ab\": want an id"));
  EXPECT_THAT(with("/model/vocab", Json::array()), HasSubstr("want an object"));
  EXPECT_THAT(with("/model/merges/0", "a b c"), HasSubstr("merges[0]: want two tokens"));
  EXPECT_THAT(with("/model/merges/0", "a z"), HasSubstr("\"az\" is not a token"));
  EXPECT_THAT(with("/model/merges", nullptr), HasSubstr("want a list \"merges\""));
  EXPECT_THAT(with("/added_tokens/0/id", 7), HasSubstr("the vocabulary has it under 259"));
  EXPECT_THAT(with("/added_tokens/1/id", 300), HasSubstr("the next one free would be 260"));
  EXPECT_THAT(with("/added_tokens/0/content", std::string(5000, 'a')), HasSubstr("5000 bytes"));
  EXPECT_THAT(with("/post_processor/special_tokens/<s>/ids/0", 999), HasSubstr("the token 999"));
  EXPECT_THAT(with("/post_processor/single", Json::array()), HasSubstr("no place for the text"));
  EXPECT_THAT(with("/model", 3), HasSubstr("\"model\""));
  EXPECT_THAT(Problem(Json::array()), HasSubstr("want an object"));
  EXPECT_THAT(Problem(ByteLevelJson(), {{"bos_token", 3}}), HasSubstr("bos_token"));
}

TEST(TokenizerJson, TextsDoNotGrowWithoutBound) {
  const auto with = [](const char* pointer, const Json& value) {
    Json json = ByteLevelJson();
    json[Json::json_pointer(pointer)] = value;
    return Problem(json);
  };
  const auto replacements = [](int count) {
    const Json twice = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
    return Json{{"type", "Sequence"}, {"normalizers", Json::array_t(count, twice)}};
  };
  EXPECT_EQ(with("/normalizer", replacements(6)), "none");
  EXPECT_THAT(with("/normalizer", replacements(7)), HasSubstr("more than 64 times"));
  EXPECT_THAT(with("/post_processor/special_tokens/<s>/ids", Json::array_t(65, 259)),
              HasSubstr("more than 64 tokens"));
}

// A token whose character never comes is held back, and no part of it comes out.
TEST(TokenizerJson, StreamsWholeCharacters) {
  const auto tokenizer = Make(ByteLevelJson());
  StreamingDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Push('x'), "x");
  EXPECT_EQ(decoder.Push(0xF0), "");
  EXPECT_EQ(decoder.Push(0x9F), "");
  EXPECT_EQ(decoder.Push(0x99), "");
  EXPECT_EQ(decoder.Push(0x82), "🙂");
  EXPECT_EQ(decoder.Push(0xF0), "");
  EXPECT_EQ(decoder.Push('y'), "\uFFFDy");
  EXPECT_EQ(decoder.Push(0xE2), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
}

// The ids that transformers' documentation gives.
TEST(TokenizerFiles, Llama2) {
  const std::string directory = JoinPath(NIBBLE_SHARED_DATA, "models/llama2-tokenizer");
  if (!IsDirectory(directory)) GTEST_SKIP() << directory << " is not there";
  const auto tokenizer = LoadTokenizer(directory);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_THAT((*tokenizer)->Encode("Hello this is a test", SpecialTokens::kAdd),
              ElementsAre(1, 15043, 445, 338, 263, 1243));
  EXPECT_TRUE((*tokenizer)->adds_bos());
  EXPECT_EQ((*tokenizer)->eos(), 2);
  EXPECT_EQ((*tokenizer)->TokenBytes(15043), " Hello");
  EXPECT_EQ((*tokenizer)->TokenBytes(13), "\n");
  // Each turn of a conversation starts as a text of its own does.
  EXPECT_THAT((*tokenizer)->Encode("<s>Hello</s><s>Hello", SpecialTokens::kOmit),
              ElementsAre(1, 15043, 2, 1, 15043));
}

TEST(TokenizerFiles, AnEmptyDirectoryIsSaidToBeOne) {
  const auto tokenizer = LoadTokenizer(NIBBLE_SOURCE_DIR);
  ASSERT_FALSE(tokenizer);
  EXPECT_THAT(tokenizer.error().message(), HasSubstr("neither tokenizer.json nor"));
}

}  // namespace
}  // namespace nibble
