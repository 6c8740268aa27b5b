// Compares with the reference implementations on the vectors that
// tests/oracles/make_tokenizer_vectors.py makes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "src/base/file.h"
#include "src/tokenizer/gguf_vocabulary.h"
#include "src/tokenizer/tokenizer.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr size_t kShownProblems = 5;

std::string VectorsDirectory() { return JoinPath(NIBBLE_BUILD_DIR, "tokenizer_vectors"); }

#define SKIP_WITHOUT_VECTORS()                                                            \
  if (!IsDirectory(VectorsDirectory())) {                                                 \
    GTEST_SKIP() << "run tests/oracles/make_tokenizer_vectors.py " << VectorsDirectory(); \
  }

// The folders that hold `file`.
std::vector<std::string> FoldersWith(const std::string& file) {
  std::vector<std::string> folders;
  for (const auto& entry : std::filesystem::directory_iterator(VectorsDirectory())) {
    if (FileExists(JoinPath(entry.path().string(), file))) folders.push_back(entry.path().string());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

class Comparison {
 public:
  explicit Comparison(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Check(const Json& vector) {
    ++vectors_;
    if (vector.contains("decode")) {
      CheckDecoding(vector, vector["decode"].get<std::vector<TokenId>>());
      return;
    }
    const std::string text = FromHex(vector["text"]);
    const auto encoded = [&](const char* key, SpecialTokens special, ParseSpecial parse) {
      if (!vector.contains(key)) return;
      Expect(vector, key, tokenizer_.Encode(text, special, parse));
    };
    encoded("ids", SpecialTokens::kOmit, ParseSpecial::kYes);
    encoded("plain", SpecialTokens::kOmit, ParseSpecial::kNo);
    encoded("added", SpecialTokens::kAdd, ParseSpecial::kYes);
    encoded("plain_added", SpecialTokens::kAdd, ParseSpecial::kNo);
    const char* decoded = vector.contains("added") ? "added" : "plain";
    CheckDecoding(vector, vector[decoded].get<std::vector<TokenId>>());
  }

  size_t vectors() const { return vectors_; }
  size_t problems() const { return problems_; }
  const std::string& report() const { return report_; }

 private:
  void CheckDecoding(const Json& vector, const std::vector<TokenId>& ids) {
    const auto decoded = [&](const char* key, SpecialText special) {
      if (!vector.contains(key)) return;
      Expect(vector, key, tokenizer_.Decode(ids, special));
      StreamingDecoder decoder(tokenizer_, special);
      std::string streamed;
      for (const TokenId id : ids) {
        const std::string part = decoder.Push(id);
        if (!IsValidUtf8(part)) Expect(vector, key, "half a character: " + part);
        streamed += part;
      }
      Expect(vector, key, streamed + decoder.Finish());
    };
    decoded("decoded", SpecialText::kSkip);
    decoded("kept", SpecialText::kKeep);
  }

  template <typename T>
  void Expect(const Json& vector, const char* key, const T& actual) {
    if (vector[key] == Json(actual)) return;
    if (++problems_ > kShownProblems) return;
    const auto dump = [](const Json& json) {
      return json.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 400);
    };
    const Json& input = vector.contains("text") ? vector["text"] : vector["decode"];
    report_ += fmt::format("{}\n  {} want {}\n  {} got  {}\n", dump(input), key, dump(vector[key]),
                           key, dump(Json(actual)));
  }

  const Tokenizer& tokenizer_;
  size_t vectors_ = 0;
  size_t problems_ = 0;
  std::string report_;
};

// How many vectors there were.
size_t CompareAll(const Tokenizer& tokenizer, const std::string& folder) {
  Comparison comparison(tokenizer);
  std::ifstream lines(JoinPath(folder, "vectors.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const Result<Json> vector = ParseJson(line, "vector");
    if (!vector) {
      ADD_FAILURE() << vector.error().message();
      return 0;
    }
    comparison.Check(*vector);
  }
  EXPECT_EQ(comparison.problems(), 0) << folder << "\n" << comparison.report();
  return comparison.vectors();
}

TEST(TokenizerVectors, EqualTheReferences) {
  SKIP_WITHOUT_VECTORS();
  size_t vectors = 0;
  for (const std::string& folder : FoldersWith("vectors.jsonl")) {
    const auto tokenizer = LoadTokenizer(folder);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message();
    vectors += CompareAll(**tokenizer, folder);
  }
  EXPECT_GE(vectors, 5000);
}

GgufVocabulary ReadGgufRecord(const std::string& path) {
  const Json json = ReadJsonFile(path).value();
  GgufVocabulary vocabulary;
  const auto read = [&](const char* key, auto& value) {
    if (json.contains(key)) value = json[key].get<std::decay_t<decltype(value)>>();
  };
  const auto read_optional = [&]<typename T>(const char* key, std::optional<T>& value) {
    if (json.contains(key)) value = json[key].get<T>();
  };
  read("model", vocabulary.model);
  read("pre", vocabulary.pre);
  read("tokens", vocabulary.tokens);
  read("merges", vocabulary.merges);
  read("scores", vocabulary.scores);
  read("token_type", vocabulary.types);
  read("chat_template", vocabulary.chat_template);
  read_optional("bos_token_id", vocabulary.bos_token_id);
  read_optional("eos_token_id", vocabulary.eos_token_id);
  read_optional("unknown_token_id", vocabulary.unknown_token_id);
  read_optional("padding_token_id", vocabulary.padding_token_id);
  read_optional("add_bos_token", vocabulary.add_bos_token);
  read_optional("add_eos_token", vocabulary.add_eos_token);
  read_optional("add_space_prefix", vocabulary.add_space_prefix);
  return vocabulary;
}

// What is made of a GGUF file's vocabulary gives the same ids as the tokenizer that it came from.
// The files are left for tests/oracles/check_converted_tokenizers.py, which loads them with
// `tokenizers` and `transformers`.
TEST(TokenizerVectors, GgufVocabulariesEqualTheirOriginals) {
  SKIP_WITHOUT_VECTORS();
  const std::vector<std::string> folders = FoldersWith("gguf_vocabulary.json");
  EXPECT_GE(folders.size(), 3);
  for (const std::string& folder : folders) {
    const GgufVocabulary vocabulary = ReadGgufRecord(JoinPath(folder, "gguf_vocabulary.json"));
    const auto files = TokenizerFilesFromGguf(vocabulary, folder);
    ASSERT_TRUE(files) << files.error().message();
    const std::string converted = JoinPath(folder, "converted");
    ASSERT_TRUE(MakeDirectories(converted));
    ASSERT_TRUE(
        WriteFileAtomic(JoinPath(converted, "tokenizer.json"), files->tokenizer_json.dump(1)));
    ASSERT_TRUE(WriteFileAtomic(JoinPath(converted, "tokenizer_config.json"),
                                files->tokenizer_config.dump(1)));
    const auto tokenizer = LoadTokenizer(converted);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message();
    EXPECT_GE(CompareAll(**tokenizer, folder), 5000);
    EXPECT_EQ((*tokenizer)->vocabulary_size(), static_cast<int64_t>(vocabulary.tokens.size()));
    EXPECT_EQ((*tokenizer)->eos(), vocabulary.eos_token_id);
  }
}

TEST(TokenizerVectors, OtherSentencePieceModelsAreRefusedByName) {
  SKIP_WITHOUT_VECTORS();
  const auto unigram = LoadTokenizer(JoinPath(VectorsDirectory(), "refused-unigram"));
  ASSERT_FALSE(unigram);
  EXPECT_THAT(unigram.error().message(), HasSubstr("type unigram"));
  const auto nfkc = LoadTokenizer(JoinPath(VectorsDirectory(), "refused-nfkc"));
  ASSERT_FALSE(nfkc);
  EXPECT_THAT(nfkc.error().message(), HasSubstr("normalization \"nmt_nfkc\""));
}

}  // namespace
}  // namespace nibble
