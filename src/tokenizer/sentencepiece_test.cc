#include "src/tokenizer/sentencepiece.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Writes the protobuf wire format.
std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}
std::string Number(int field, uint64_t value) { return Varint(field * 8) + Varint(value); }
std::string Bytes(int field, const std::string& bytes) {
  return Varint(field * 8 + 2) + Varint(bytes.size()) + bytes;
}
std::string Piece(const std::string& text, float score, PieceType type) {
  std::string bits(4, '\0');
  std::memcpy(bits.data(), &score, 4);
  return Bytes(1, Bytes(1, text) + Varint(2 * 8 + 5) + bits + Number(3, static_cast<int>(type)));
}

// Ids: <unk> 0, <s> 1, ▁ 2, a 3, b 4, ab 5, ▁ab 6, ▁a 7.
std::string Pieces() {
  return Piece("<unk>", 0, PieceType::kUnknown) + Piece("<s>", 0, PieceType::kControl) +
         Piece("\u2581", -5, PieceType::kNormal) + Piece("a", -6, PieceType::kNormal) +
         Piece("b", -7, PieceType::kNormal) + Piece("ab", -1, PieceType::kNormal) +
         Piece("\u2581ab", -2, PieceType::kNormal) + Piece("\u2581a", -3, PieceType::kNormal);
}
std::string Model(const std::string& trainer, const std::string& normalizer,
                  const std::string& pieces = Pieces()) {
  return pieces + Bytes(2, Number(3, 2) + trainer) + Bytes(3, normalizer);
}
const std::string kKeepSpaces = Number(4, 0);

Result<std::unique_ptr<Tokenizer>> Load(const std::string& model,
                                        const Json& config = Json::object()) {
  return TokenizerFromSentencePiece(std::as_bytes(std::span(model)), config, "file");
}
std::string Problem(const std::string& model) {
  const auto tokenizer = Load(model);
  return tokenizer ? "none" : tokenizer.error().message();
}
std::vector<TokenId> Encode(const std::string& model, std::string_view text) {
  const auto tokenizer = Load(model);
  if (!tokenizer) {
    ADD_FAILURE() << tokenizer.error().message();
    return {};
  }
  return (*tokenizer)->Encode(text, SpecialTokens::kOmit);
}

TEST(SentencePiece, MergesByScore) {
  EXPECT_THAT(Encode(Model("", kKeepSpaces), "ab abb  a"), ElementsAre(6, 6, 4, 2, 7));
  // Runs of unknown characters are one token.
  EXPECT_THAT(Encode(Model("", kKeepSpaces), "xyaz"), ElementsAre(2, 0, 3, 0));
}

TEST(SentencePiece, NormalizerFlags) {
  EXPECT_THAT(Encode(Model("", ""), "  ab  ab "), ElementsAre(6, 6));
  EXPECT_THAT(Encode(Model("", ""), "   "), ElementsAre());
  EXPECT_THAT(Encode(Model("", Number(3, 0) + kKeepSpaces), "ab a"), ElementsAre(5, 7));
}

TEST(SentencePiece, ControlTokensSplitTheText) {
  const std::string model = Model("", kKeepSpaces);
  EXPECT_THAT(Encode(model, "<s>ab<s>"), ElementsAre(1, 6, 1));
  const auto plain = Load(model);
  EXPECT_THAT((*plain)->Encode("<s>", SpecialTokens::kOmit, ParseSpecial::kNo), ElementsAre(2, 0));
  // Where the configuration says so, only the start of the text gets a space.
  const auto modern = Load(model, {{"legacy", false}, {"add_bos_token", false}});
  EXPECT_THAT((*modern)->Encode("ab<s>ab", SpecialTokens::kAdd), ElementsAre(6, 1, 5));
}

TEST(SentencePiece, TheConfigurationAddsTokens) {
  const Json added = {{"1", {{"content", "<s>"}, {"special", true}, {"normalized", true}}},
                      {"8", {{"content", "<pad>"}, {"special", true}}}};
  const auto tokenizer =
      Load(Model("", kKeepSpaces), {{"added_tokens_decoder", added}, {"pad_token", "<pad>"}});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_THAT((*tokenizer)->Encode("<s>ab<pad>", SpecialTokens::kOmit), ElementsAre(1, 6, 8));
  EXPECT_EQ((*tokenizer)->padding(), 8);
  EXPECT_EQ((*tokenizer)->Decode(std::vector<TokenId>{1, 6, 8, 6}), "ab ab");
}

TEST(SentencePiece, DecodesBytesAndUnknowns) {
  std::string pieces = Piece("<unk>", 0, PieceType::kUnknown);
  for (int byte = 0; byte < 256; ++byte) {
    pieces += Piece(fmt::format("<0x{:02X}>", byte), 0, PieceType::kByte);
  }
  pieces += Piece("\u2581", -1, PieceType::kNormal);
  const auto tokenizer = Load(Model(Number(35, 1), kKeepSpaces, pieces));
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_THAT((*tokenizer)->Encode("é", SpecialTokens::kOmit), ElementsAre(257, 0xC4, 0xAA));
  // Each byte that is part of no character is one U+FFFD.
  EXPECT_EQ((*tokenizer)->Decode(std::vector<TokenId>{257, 0xC4, 0xAA, 0xE3, 0x83, 0, 257}),
            "é\uFFFD\uFFFD \u2047  ");
  StreamingDecoder decoder(**tokenizer);
  EXPECT_EQ(decoder.Push(0xC4), "");
  EXPECT_EQ(decoder.Push(0xAA), "é");
}

TEST(SentencePiece, OthersAreRefusedByName) {
  EXPECT_EQ(Problem(Model("", "")), "none");
  EXPECT_THAT(Problem(Pieces()), HasSubstr("type unigram"));  // the format's default
  EXPECT_THAT(Problem(Model(Number(3, 4), "")), HasSubstr("type char"));
  EXPECT_THAT(Problem(Model("", Bytes(1, "nfkc") + Bytes(2, "rules"))),
              HasSubstr("normalization \"nfkc\""));
  EXPECT_THAT(Problem(Model(Number(24, 1), "")), HasSubstr("treat_whitespace_as_suffix"));
  EXPECT_THAT(Problem(Model("", "") + Bytes(5, Bytes(2, "rules"))), HasSubstr("denormalization"));
}

TEST(SentencePiece, BrokenFilesAreRefused) {
  const std::string whole = Model("", "");
  size_t refused = 0;
  for (size_t size = 0; size < whole.size(); ++size) {
    refused += Problem(whole.substr(0, size)) != "none";
  }
  // Cut between two fields before the trainer's, a file is one of the default type, unigram; cut
  // after it, it is whole.
  EXPECT_GE(refused, whole.size() - 2);
  EXPECT_THAT(Problem(Model(Number(35, 1), "")), HasSubstr("without the piece <0x00>"));
  EXPECT_THAT(Problem(Model("", "", Pieces() + Piece("a", 0, PieceType::kNormal))),
              HasSubstr("\"a\" occurs twice"));
  EXPECT_THAT(Problem(Model("", "", Pieces() + Piece("", 0, PieceType::kNormal))),
              HasSubstr("piece 8 is empty"));
  EXPECT_THAT(Problem(Model("", "", Pieces() + Piece("\xFF", 0, PieceType::kNormal))),
              HasSubstr("not UTF-8"));
  EXPECT_THAT(Problem(Model("", "", Pieces() + Piece("c", 1e30f * 1e30f, PieceType::kNormal))),
              HasSubstr("no finite score"));
  EXPECT_THAT(Problem(Model("", "", Piece("a", 0, PieceType::kNormal))),
              HasSubstr("no piece of type unknown"));
  EXPECT_THAT(Problem(Bytes(1, Number(1, 5))), HasSubstr("\"piece\" has the wrong wire type"));
  EXPECT_THAT(Problem(std::string(20, '\xFF')), HasSubstr("overlong number"));
  EXPECT_THAT(Problem(Varint(2 * 8 + 2) + Varint(uint64_t{1} << 62)), HasSubstr("truncated"));
}

}  // namespace
}  // namespace nibble
