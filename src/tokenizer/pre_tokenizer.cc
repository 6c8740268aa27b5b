#include "src/tokenizer/pre_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "src/tokenizer/normalizer.h"
#include "src/tokenizer/unicode_supplement.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

bool IsNumber(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO || IsInRanges(c, kNewNumbers) ||
         IsInRanges(c, kNewestNumbers);
}

std::vector<TextRange> FindNumbers(std::string_view text) {
  std::vector<TextRange> matches;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (IsNumber(step.code_point)) matches.push_back({at, at + step.bytes});
    at += step.bytes;
  }
  return matches;
}

std::vector<TextRange> FindLiteral(std::string_view text, std::string_view literal) {
  std::vector<TextRange> matches;
  for (size_t at = text.find(literal); at != std::string_view::npos;
       at = text.find(literal, at + literal.size())) {
    matches.push_back({at, at + literal.size()});
  }
  return matches;
}

struct Part {
  TextRange range;
  bool delimiter;
};

// All of a text of `size` bytes, its `matches` and what lies between them.
std::vector<Part> Partition(const std::vector<TextRange>& matches, size_t size, SplitAt at) {
  const bool matches_delimit = at == SplitAt::kMatches;
  std::vector<Part> parts;
  parts.reserve(matches.size() * 2 + 1);
  size_t done = 0;
  for (const TextRange& match : matches) {
    if (done < match.begin) parts.push_back({{done, match.begin}, !matches_delimit});
    parts.push_back({match, matches_delimit});
    done = match.end;
  }
  if (done < size) parts.push_back({{done, size}, !matches_delimit});
  return parts;
}

// Appends the pieces that `parts`, which start at `offset` of the text, make up.
void AppendPieces(const std::vector<Part>& parts, SplitBehavior behavior, size_t offset,
                  std::vector<TextRange>& pieces) {
  const size_t first = pieces.size();
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const bool starts = i == 0;
    const bool after_delimiter = !starts && parts[i - 1].delimiter;
    bool joins = false;  // the piece before
    switch (behavior) {
      case SplitBehavior::kRemoved:
        if (part.delimiter) continue;
        break;
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kContiguous:
        joins = !starts && part.delimiter == after_delimiter;
        break;
      case SplitBehavior::kMergedWithPrevious:
        joins = !starts && part.delimiter && !after_delimiter;
        break;
      case SplitBehavior::kMergedWithNext:
        joins = after_delimiter && !part.delimiter;
        break;
    }
    if (joins && pieces.size() > first) {
      pieces.back().end = offset + part.range.end;
    } else {
      pieces.push_back({offset + part.range.begin, offset + part.range.end});
    }
  }
}

class Cutter {
 public:
  Cutter(std::string text, SegmentPlace place) : place_(place) {
    cut_.pieces.push_back({0, text.size()});
    cut_.text = std::move(text);
  }
  PreTokenized Take() { return std::move(cut_); }

  void operator()(const SplitStep& step) {
    Split(step.behavior, step.at,
          [&](std::string_view piece) { return step.regex.FindAll(piece); });
  }

  void operator()(const DigitsStep& step) { Split(step.behavior, SplitAt::kMatches, FindNumbers); }

  void operator()(const MetaspaceStep& step) {
    Rewrite([&](std::string_view piece, bool at_start) {
      std::string text = ReplaceAll(piece, " ", step.replacement);
      const bool wanted = step.prepend == PrependScheme::kAlways ||
                          (step.prepend == PrependScheme::kFirst && at_start);
      if (wanted && !text.starts_with(step.replacement)) text.insert(0, step.replacement);
      return text;
    });
    if (step.split) {
      Split(SplitBehavior::kMergedWithNext, SplitAt::kMatches,
            [&](std::string_view piece) { return FindLiteral(piece, step.replacement); });
    }
  }

  void operator()(const PrefixSpaceStep&) {
    Rewrite([](std::string_view piece, bool) {
      return piece.starts_with(' ') ? std::string(piece) : " " + std::string(piece);
    });
  }

 private:
  std::string_view Text(const TextRange& range) const {
    return std::string_view(cut_.text).substr(range.begin, range.size());
  }

  template <typename Find>
  void Split(SplitBehavior behavior, SplitAt at, const Find& find) {
    std::vector<TextRange> pieces;
    pieces.reserve(cut_.pieces.size());
    for (const TextRange& piece : cut_.pieces) {
      AppendPieces(Partition(find(Text(piece)), piece.size(), at), behavior, piece.begin, pieces);
    }
    cut_.pieces = std::move(pieces);
  }

  template <typename Change>
  void Rewrite(const Change& change) {
    // Where the start of the text was removed, no piece is at it any more.
    if (cut_.pieces.empty() || cut_.pieces[0].begin > 0) place_ = SegmentPlace::kLater;
    PreTokenized changed;
    changed.pieces.reserve(cut_.pieces.size());
    for (size_t i = 0; i < cut_.pieces.size(); ++i) {
      const size_t begin = changed.text.size();
      const bool at_start = i == 0 && place_ == SegmentPlace::kStart;
      changed.text += change(Text(cut_.pieces[i]), at_start);
      changed.pieces.push_back({begin, changed.text.size()});
    }
    cut_ = std::move(changed);
  }

  SegmentPlace place_;
  PreTokenized cut_;
};

}  // namespace

PreTokenized PreTokenize(const std::vector<PreTokenizerStep>& steps, std::string text,
                         SegmentPlace place) {
  Cutter cutter(std::move(text), place);
  for (const PreTokenizerStep& step : steps) std::visit(cutter, step);
  return cutter.Take();
}

}  // namespace nibble
