#include <algorithm>
#include <cstring>

#include "src/tokenizer/sentencepiece.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr size_t kMaxSurfaceBytes = 1024;

struct Field {
  enum class Kind { kVarint, kFixed64, kBytes, kFixed32 };
  uint64_t number = 0;
  Kind kind = Kind::kVarint;
  uint64_t value = 0;      // of a number
  std::string_view bytes;  // of kBytes
};

// The fields of one message, one after the other.
// Source: https://protobuf.dev/programming-guides/encoding
class FieldReader {
 public:
  FieldReader(std::string_view message, std::string_view source)
      : rest_(message), source_(source) {}

  bool done() const { return rest_.empty(); }

  Result<Field> Next() {
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t tag, Varint());
    Field field;
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0: {
        field.kind = Field::Kind::kVarint;
        NIBBLE_ASSIGN_OR_RETURN(field.value, Varint());
        return field;
      }
      case 1: {
        field.kind = Field::Kind::kFixed64;
        NIBBLE_ASSIGN_OR_RETURN(field.value, Fixed(8));
        return field;
      }
      case 2: {
        field.kind = Field::Kind::kBytes;
        NIBBLE_ASSIGN_OR_RETURN(const uint64_t size, Varint());
        if (size > rest_.size()) return Truncated();
        field.bytes = rest_.substr(0, static_cast<size_t>(size));
        rest_.remove_prefix(static_cast<size_t>(size));
        return field;
      }
      case 5: {
        field.kind = Field::Kind::kFixed32;
        NIBBLE_ASSIGN_OR_RETURN(field.value, Fixed(4));
        return field;
      }
      default:
        return BadInput("{}: not a SentencePiece model (wire type {} in field {})", source_,
                        tag & 7, field.number);
    }
  }

 private:
  tl::unexpected<Error> Truncated() const {
    return BadInput("{}: not a SentencePiece model, or a truncated one", source_);
  }

  Result<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) return Truncated();
      const auto byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    return BadInput("{}: not a SentencePiece model (an overlong number)", source_);
  }

  Result<uint64_t> Fixed(size_t size) {
    if (rest_.size() < size) return Truncated();
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) {
      value |= uint64_t{static_cast<unsigned char>(rest_[i])} << (8 * i);
    }
    rest_.remove_prefix(size);
    return value;
  }

  std::string_view rest_;
  std::string_view source_;
};

// Calls read(field) for each field; a field that read() knows must be of the right kind, which
// Expect checks.
template <typename Read>
Status ForEachField(std::string_view message, std::string_view source, const Read& read) {
  FieldReader reader(message, source);
  while (!reader.done()) {
    NIBBLE_ASSIGN_OR_RETURN(const Field field, reader.Next());
    NIBBLE_RETURN_IF_ERROR(read(field));
  }
  return {};
}

Status Expect(const Field& field, Field::Kind kind, std::string_view name,
              std::string_view source) {
  if (field.kind == kind) return {};
  return BadInput("{}: \"{}\" has the wrong wire type", source, name);
}

Status ReadText(const Field& field, std::string_view name, std::string_view source,
                std::string& text) {
  NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kBytes, name, source));
  if (!IsValidUtf8(field.bytes)) return BadInput("{}: \"{}\" is not UTF-8", source, name);
  text = field.bytes;
  return {};
}

Status ReadFlag(const Field& field, std::string_view name, std::string_view source, bool& flag) {
  NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kVarint, name, source));
  flag = field.value != 0;
  return {};
}

Result<SentencePiece> ReadPiece(std::string_view message, std::string_view source) {
  SentencePiece piece;
  const auto read = [&](const Field& field) -> Status {
    switch (field.number) {
      case 1:
        return ReadText(field, "piece", source, piece.text);
      case 2: {
        NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kFixed32, "score", source));
        const auto bits = static_cast<uint32_t>(field.value);
        std::memcpy(&piece.score, &bits, sizeof(bits));
        return {};
      }
      case 3:
        NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kVarint, "type", source));
        if (field.value < 1 || field.value > 6) {
          return BadInput("{}: a piece of type {}, which is not known", source, field.value);
        }
        piece.type = static_cast<PieceType>(field.value);
        return {};
      default:
        return {};
    }
  };
  NIBBLE_RETURN_IF_ERROR(ForEachField(message, source, read));
  return piece;
}

Status ReadTrainerSpec(std::string_view message, std::string_view source, SentencePieceFile& file) {
  return ForEachField(message, source, [&](const Field& field) -> Status {
    switch (field.number) {
      case 3:
        NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kVarint, "model_type", source));
        if (field.value < 1 || field.value > 4) {
          return BadInput("{}: model type {}, which is not known", source, field.value);
        }
        file.model_type = static_cast<SentencePieceFile::ModelType>(field.value);
        return {};
      case 24:
        return ReadFlag(field, "treat_whitespace_as_suffix", source, file.whitespace_as_suffix);
      case 35:
        return ReadFlag(field, "byte_fallback", source, file.byte_fallback);
      case 44:
        if (field.bytes.size() > kMaxSurfaceBytes) {
          return BadInput("{}: \"unk_surface\" is longer than {} bytes", source, kMaxSurfaceBytes);
        }
        return ReadText(field, "unk_surface", source, file.unknown_surface);
      case 46:
        return ReadText(field, "bos_piece", source, file.bos);
      case 47:
        return ReadText(field, "eos_piece", source, file.eos);
      case 48:
        return ReadText(field, "pad_piece", source, file.padding);
      default:
        return {};
    }
  });
}

Status ReadNormalizerSpec(std::string_view message, std::string_view source,
                          SentencePieceFile& file) {
  return ForEachField(message, source, [&](const Field& field) -> Status {
    switch (field.number) {
      case 1:
        return ReadText(field, "normalizer name", source, file.normalization);
      case 2:
        file.normalization_rule_bytes = field.bytes.size();
        return Expect(field, Field::Kind::kBytes, "precompiled_charsmap", source);
      case 3:
        return ReadFlag(field, "add_dummy_prefix", source, file.add_dummy_prefix);
      case 4:
        return ReadFlag(field, "remove_extra_whitespaces", source, file.remove_extra_whitespaces);
      case 5:
        return ReadFlag(field, "escape_whitespaces", source, file.escape_whitespaces);
      default:
        return {};
    }
  });
}

Status ReadDenormalizerSpec(std::string_view message, std::string_view source,
                            SentencePieceFile& file) {
  return ForEachField(message, source, [&](const Field& field) -> Status {
    if (field.number != 2) return {};
    file.denormalization_rule_bytes = field.bytes.size();
    return Expect(field, Field::Kind::kBytes, "precompiled_charsmap", source);
  });
}

}  // namespace

Result<SentencePieceFile> ReadSentencePieceFile(std::span<const std::byte> bytes,
                                                std::string_view source) {
  SentencePieceFile file;
  const std::string_view message(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto read = [&](const Field& field) -> Status {
    switch (field.number) {
      case 1: {
        NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kBytes, "pieces", source));
        if (static_cast<int64_t>(file.pieces.size()) == kMaxVocabularySize) {
          return BadInput("{}: more than {} pieces", source, kMaxVocabularySize);
        }
        NIBBLE_ASSIGN_OR_RETURN(SentencePiece piece, ReadPiece(field.bytes, source));
        file.pieces.push_back(std::move(piece));
        return {};
      }
      case 2:
        NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kBytes, "trainer_spec", source));
        return ReadTrainerSpec(field.bytes, source, file);
      case 3:
        NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kBytes, "normalizer_spec", source));
        return ReadNormalizerSpec(field.bytes, source, file);
      case 5:
        NIBBLE_RETURN_IF_ERROR(Expect(field, Field::Kind::kBytes, "denormalizer_spec", source));
        return ReadDenormalizerSpec(field.bytes, source, file);
      default:
        return {};
    }
  };
  NIBBLE_RETURN_IF_ERROR(ForEachField(message, source, read));
  if (file.pieces.empty()) return BadInput("{}: a SentencePiece model without pieces", source);
  return file;
}

}  // namespace nibble
