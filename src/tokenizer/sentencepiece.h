// SentencePiece BPE models: the `tokenizer.model` file and the encoding of texts by it. The
// reference is the SentencePiece library (sentencepiece_model.proto, bpe_model.cc, normalizer.cc).
#ifndef NIBBLE_TOKENIZER_SENTENCEPIECE_H_
#define NIBBLE_TOKENIZER_SENTENCEPIECE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/base/error.h"
#include "src/tokenizer/added_tokens.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

// The values of sentencepiece_model.proto.
enum class PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct SentencePiece {
  std::string text;  // valid UTF-8, not empty
  float score = 0;
  PieceType type = PieceType::kNormal;
};

// What of the file's content bears on encoding and decoding, with the format's defaults.
struct SentencePieceFile {
  enum class ModelType { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };
  std::vector<SentencePiece> pieces;  // by id
  ModelType model_type = ModelType::kUnigram;
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  std::string bos = "<s>";
  std::string eos = "</s>";
  std::string padding = "<pad>";
  std::string unknown_surface = " \xE2\x81\x87 ";  // what an unknown token decodes to
  std::string normalization;                       // its name
  size_t normalization_rule_bytes = 0;
  size_t denormalization_rule_bytes = 0;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Reads the protobuf wire format; every length is checked against the file's.
Result<SentencePieceFile> ReadSentencePieceFile(std::span<const std::byte> bytes,
                                                std::string_view source);

class SentencePieceModel {
 public:
  // Model types other than BPE and normalization rules are refused by name.
  static Result<SentencePieceModel> Create(SentencePieceFile file, std::string_view source);
  SentencePieceModel(SentencePieceModel&&) = default;

  // Whether a text gets the space that the model puts before one.
  enum class DummyPrefix { kAdd, kOmit };

  // Appends the tokens of a text, which is valid UTF-8.
  void Encode(std::string_view text, DummyPrefix prefix, std::vector<TokenId>& tokens) const;

  const SentencePieceFile& file() const { return file_; }
  TokenId unknown() const { return unknown_; }
  std::optional<TokenId> Find(std::string_view text) const;
  // Of a byte token.
  std::optional<uint8_t> Byte(TokenId token) const;

 private:
  struct Symbol {
    std::string_view text;  // empty once merged into the one before
    int32_t previous;
    int32_t next;  // -1 at the end
    TokenId id;
    bool user_defined;  // never merged
  };

  explicit SentencePieceModel(SentencePieceFile file) : file_(std::move(file)) {}
  std::string Normalize(std::string_view text, DummyPrefix prefix) const;
  std::string_view NextUnit(std::string_view text) const;
  std::optional<TokenId> FindOrdinary(std::string_view text) const;
  void EncodeChunk(std::string_view chunk, std::vector<TokenId>& tokens) const;
  std::vector<Symbol> Split(std::string_view chunk) const;

  SentencePieceFile file_;
  std::unordered_map<std::string_view, TokenId> ordinary_;  // normal, user-defined and unused
  std::unordered_map<std::string_view, TokenId> reserved_;  // the others
  std::array<TokenId, 256> byte_tokens_{};
  PrefixTrie user_defined_;
  TokenId unknown_ = 0;
  size_t longest_ = 0;  // bytes of an ordinary piece
  bool has_unused_ = false;
  bool cuts_at_metaspace_ = false;
};

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_SENTENCEPIECE_H_
