#include "src/tokenizer/tokenizer.h"

#include "src/base/file.h"
#include "src/tokenizer/byte_level.h"
#include "src/tokenizer/pipeline.h"
#include "src/tokenizer/utf8.h"
#include "src/tokenizer/word_cache.h"

namespace nibble {
namespace {

void EncodePieces(const HfModel& model, std::string text, SegmentPlace place,
                  std::vector<TokenId>& tokens) {
  const PreTokenized cut = PreTokenize(model.pre_tokenizer, std::move(text), place);
  WordCache cache(tokens);
  const auto encode = [&](std::string_view word, std::vector<TokenId>& out) {
    if (model.byte_level) {
      model.bpe.Encode(BytesToPrintable(word), out);
    } else {
      model.bpe.Encode(word, out);
    }
  };
  for (const TextRange& range : cut.pieces) {
    const std::string_view piece = std::string_view(cut.text).substr(range.begin, range.size());
    if (!model.byte_level && model.bpe.cuts_at_metaspace()) {
      CutAtMetaspace(piece, [&](std::string_view word) { cache.Append(word, encode); });
    } else {
      cache.Append(piece, encode);
    }
  }
}

// `text` lies between added tokens that are looked for in the text as given.
void EncodeSegment(const TokenizerPipeline& pipeline, std::string_view text, SegmentPlace place,
                   ParseSpecial parse_special, std::vector<TokenId>& tokens) {
  if (const auto* model = std::get_if<SpModel>(&pipeline.model)) {
    const bool prefix = model->prefix_everywhere || place == SegmentPlace::kStart;
    model->model.Encode(
        text,
        prefix ? SentencePieceModel::DummyPrefix::kAdd : SentencePieceModel::DummyPrefix::kOmit,
        tokens);
    return;
  }
  const auto& model = std::get<HfModel>(pipeline.model);
  const std::string normalized = Normalize(pipeline.normalizer, text);
  for (const Segment& segment : pipeline.added_normalized.Split(normalized, parse_special)) {
    if (segment.token) {
      tokens.push_back(*segment.token);
      continue;
    }
    const bool at_start = place == SegmentPlace::kStart && segment.begin == 0;
    EncodePieces(model, normalized.substr(segment.begin, segment.end - segment.begin),
                 at_start ? SegmentPlace::kStart : SegmentPlace::kLater, tokens);
  }
}

// What of `token` goes to the decoder; nothing where it is left out.
std::optional<DecodedToken> ForDecoding(const TokenizerPipeline& pipeline, TokenId token,
                                        SpecialText special_text) {
  const Vocabulary::Entry* entry = pipeline.vocabulary.Get(token);
  if (entry == nullptr) return std::nullopt;
  if (entry->special && special_text == SpecialText::kSkip) {
    // SentencePiece lets a control token end a run of bytes.
    if (entry->kind == TokenKind::kControl) return DecodedToken{"", TokenKind::kControl};
    return std::nullopt;
  }
  return DecodedToken{entry->decoded.empty() ? entry->text : entry->decoded, entry->kind};
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerPipeline> pipeline)
    : pipeline_(std::move(pipeline)) {}
Tokenizer::~Tokenizer() = default;

std::vector<TokenId> Tokenizer::Encode(std::string_view text, SpecialTokens special_tokens,
                                       ParseSpecial parse_special) const {
  std::string repaired;
  if (!IsValidUtf8(text)) {
    repaired = ReplaceMalformedUtf8(text);
    text = repaired;
  }
  std::vector<TokenId> tokens;
  if (special_tokens == SpecialTokens::kAdd) tokens = pipeline_->prefix;
  for (const Segment& segment : pipeline_->added.Split(text, parse_special)) {
    if (segment.token) {
      tokens.push_back(*segment.token);
    } else {
      EncodeSegment(*pipeline_, text.substr(segment.begin, segment.end - segment.begin),
                    segment.begin == 0 ? SegmentPlace::kStart : SegmentPlace::kLater, parse_special,
                    tokens);
    }
  }
  if (special_tokens == SpecialTokens::kAdd) {
    tokens.insert(tokens.end(), pipeline_->suffix.begin(), pipeline_->suffix.end());
  }
  return tokens;
}

std::string Tokenizer::Decode(std::span<const TokenId> tokens, SpecialText special_text) const {
  StreamingDecoder decoder(*this, special_text);
  std::string text;
  for (const TokenId token : tokens) text += decoder.Push(token);
  text += decoder.Finish();
  return text;
}

int64_t Tokenizer::vocabulary_size() const { return pipeline_->vocabulary.size(); }
std::optional<TokenId> Tokenizer::bos() const { return pipeline_->bos; }
std::optional<TokenId> Tokenizer::eos() const { return pipeline_->eos; }
std::optional<TokenId> Tokenizer::unknown() const { return pipeline_->unknown; }
std::optional<TokenId> Tokenizer::padding() const { return pipeline_->padding; }

bool Tokenizer::adds_bos() const {
  return !pipeline_->prefix.empty() && pipeline_->prefix.front() == pipeline_->bos;
}
bool Tokenizer::adds_eos() const {
  return !pipeline_->suffix.empty() && pipeline_->suffix.back() == pipeline_->eos;
}

bool Tokenizer::IsSpecial(TokenId token) const {
  const Vocabulary::Entry* entry = pipeline_->vocabulary.Get(token);
  return entry != nullptr && entry->special;
}

std::string_view Tokenizer::TokenText(TokenId token) const {
  const Vocabulary::Entry* entry = pipeline_->vocabulary.Get(token);
  return entry == nullptr ? std::string_view() : entry->text;
}

std::string Tokenizer::TokenBytes(TokenId token) const {
  const auto decoded = ForDecoding(*pipeline_, token, SpecialText::kKeep);
  return decoded ? MiddleBytes(pipeline_->decoding, *decoded) : std::string();
}

std::optional<TokenId> Tokenizer::FindToken(std::string_view text) const {
  return pipeline_->vocabulary.Find(text);
}

struct StreamingDecoder::State {
  const TokenizerPipeline* pipeline;
  SpecialText special_text;
  DecodingState decoding;
};

StreamingDecoder::StreamingDecoder(const Tokenizer& tokenizer, SpecialText special_text)
    : state_(std::make_unique<State>(State{tokenizer.pipeline_.get(), special_text,
                                           DecodingState(tokenizer.pipeline_->decoding)})) {}
StreamingDecoder::~StreamingDecoder() = default;
StreamingDecoder::StreamingDecoder(StreamingDecoder&&) noexcept = default;
StreamingDecoder& StreamingDecoder::operator=(StreamingDecoder&&) noexcept = default;

std::string StreamingDecoder::Push(TokenId token) {
  const auto decoded = ForDecoding(*state_->pipeline, token, state_->special_text);
  return decoded ? state_->decoding.Push(*decoded) : std::string();
}

std::string StreamingDecoder::Finish() { return state_->decoding.Finish(); }

Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_directory) {
  Json config = Json::object();
  const std::string config_path = JoinPath(model_directory, "tokenizer_config.json");
  if (FileExists(config_path)) {
    NIBBLE_ASSIGN_OR_RETURN(config, ReadJsonFile(config_path));
  }
  const std::string json_path = JoinPath(model_directory, "tokenizer.json");
  if (FileExists(json_path)) {
    NIBBLE_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(json_path));
    return TokenizerFromJson(json, config, json_path);
  }
  const std::string model_path = JoinPath(model_directory, "tokenizer.model");
  if (FileExists(model_path)) {
    NIBBLE_ASSIGN_OR_RETURN(const MappedFile model, MappedFile::Open(model_path));
    return TokenizerFromSentencePiece(model.bytes(), config, model_path);
  }
  return BadInput("{}: neither tokenizer.json nor tokenizer.model is there", model_directory);
}

}  // namespace nibble
