// The paged key-value cache: where a token's keys and values lie.
//
// The cache is a pool of blocks of `block_tokens` tokens each. A sequence owns a table of block
// numbers; its token at position p lies in block table[p / block_tokens], slot p % block_tokens, in
// every layer. Blocks may be shared by sequences that begin alike. (Paging as in vLLM,
// arXiv:2309.06180.)
#ifndef NIBBLE_OPS_KV_H_
#define NIBBLE_OPS_KV_H_

#include <cstdint>
#include <span>

#include "src/ops/sampling.h"
#include "src/tensor/tensor.h"

namespace nibble {

struct KvLayout {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t block_tokens = 0;
  DType dtype = DType::kF16;

  // Whether each token's keys and values of a head have a scale.
  bool scaled() const { return dtype == DType::kF8E4M3; }
  // Keys and values of one token in one layer, and of 8 bits their scales in 16.
  uint64_t TokenBytes() const {
    const auto head = static_cast<uint64_t>(head_dim) * BytesOf(dtype) + (scaled() ? 2 : 0);
    return static_cast<uint64_t>(2 * kv_heads) * head;
  }
  // Of one block in all layers, and of 8 bits room for one layer's in 16.
  uint64_t BlockBytes() const {
    const auto tokens = static_cast<uint64_t>(block_tokens);
    const auto wide = static_cast<uint64_t>(2 * kv_heads * head_dim) * 2;
    return tokens * (static_cast<uint64_t>(layers) * TokenBytes() + (scaled() ? wide : 0));
  }
};

// The pool's memory, in a backend's own arrangement.
class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual const KvLayout& layout() const = 0;
  virtual int64_t blocks() const = 0;
};

// The work of one step: new tokens of several sequences, one row of activations each, the rows of a
// sequence together and in order.
struct Batch {
  std::span<const int32_t> tokens;           // [rows] ids
  std::span<const int32_t> positions;        // [rows] from 0
  std::span<const int32_t> row_begin;        // [sequences + 1] into rows
  std::span<const int32_t> context_lengths;  // [sequences] tokens cached once this step is done
  std::span<const int32_t> block_tables;     // [sequences, max_blocks]
  int64_t max_blocks = 0;
  std::span<const int32_t> logit_rows;  // the rows whose logits are wanted, ascending
  // [rows]: i where the row's token is the one that was last chosen for logit row i, which the host
  // need not know; -1 where it is in `tokens`. Empty: all are.
  std::span<const int32_t> chosen_rows;
  // [logit rows]: how the next tokens are to be chosen. Empty: the most probable.
  std::span<const TokenChoice> choices;

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t sequences() const { return static_cast<int64_t>(context_lengths.size()); }
};

}  // namespace nibble

#endif  // NIBBLE_OPS_KV_H_
