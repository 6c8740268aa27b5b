// A tokenizer from a `tokenizer.model`.
#include "src/tokenizer/pipeline.h"

namespace nibble {
namespace {

TokenKind KindOf(PieceType type) {
  switch (type) {
    case PieceType::kByte:
      return TokenKind::kByte;
    case PieceType::kControl:
      return TokenKind::kControl;
    case PieceType::kUnknown:
      return TokenKind::kUnknown;
    case PieceType::kNormal:
    case PieceType::kUserDefined:
    case PieceType::kUnused:
      break;
  }
  return TokenKind::kText;
}

// The id of `text` where it is a control token.
std::optional<TokenId> FindControl(const SentencePieceModel& model, std::string_view text) {
  const std::optional<TokenId> id = model.Find(text);
  if (!id || model.file().pieces[static_cast<size_t>(*id)].type != PieceType::kControl) {
    return std::nullopt;
  }
  return id;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> TokenizerFromSentencePiece(std::span<const std::byte> model,
                                                              const Json& tokenizer_config,
                                                              std::string_view source) {
  const std::string config_source = fmt::format("{} (tokenizer_config)", source);
  NIBBLE_ASSIGN_OR_RETURN(TokenizerConfig config,
                          ReadTokenizerConfig(tokenizer_config, config_source));
  NIBBLE_ASSIGN_OR_RETURN(SentencePieceFile file, ReadSentencePieceFile(model, source));
  NIBBLE_ASSIGN_OR_RETURN(SentencePieceModel pieces,
                          SentencePieceModel::Create(std::move(file), source));
  const SentencePieceDecoding decoding{
      .unknown_surface = pieces.file().unknown_surface,
      .strips_leading_space =
          pieces.file().add_dummy_prefix || pieces.file().remove_extra_whitespaces,
      .strips_every_leading_space = pieces.file().remove_extra_whitespaces};
  auto pipeline = std::make_unique<TokenizerPipeline>(TokenizerPipeline{
      .model = SpModel{std::move(pieces), config.legacy.value_or(true)}, .decoding = decoding});
  const SentencePieceModel& built = std::get<SpModel>(pipeline->model).model;

  for (size_t i = 0; i < built.file().pieces.size(); ++i) {
    const SentencePiece& piece = built.file().pieces[i];
    const auto id = static_cast<TokenId>(i);
    if (pipeline->vocabulary.Find(piece.text)) {
      return BadInput("{}: piece \"{}\" occurs twice", source, piece.text);
    }
    pipeline->vocabulary.Add(id, piece.text).kind = KindOf(piece.type);
    if (piece.type == PieceType::kControl) {
      const AddedToken token{.id = id, .content = piece.text, .special = true};
      NIBBLE_RETURN_IF_ERROR(AddToken(token, source, *pipeline));
    }
  }
  pipeline->bos = FindControl(built, built.file().bos);
  pipeline->eos = FindControl(built, built.file().eos);
  pipeline->padding = FindControl(built, built.file().padding);
  pipeline->unknown = built.unknown();
  // As Llama's tokenizers do where their configuration does not say.
  config.add_bos = config.add_bos.value_or(true);
  config.unknown.reset();  // the model's own: it decodes to a surface, which a special one does not
  NIBBLE_RETURN_IF_ERROR(ApplyConfig(config, config_source, *pipeline));
  FinishAddedTokens(*pipeline);
  return std::make_unique<Tokenizer>(std::move(pipeline));
}

}  // namespace nibble
