// The packed form of 4-bit weights, as the kernels see it, and what the kernels share.
//
// A weight is cut into tiles of 16 outputs by units of 128 inputs, 1 KiB of codes each:
//   codes[tile][unit][half][lane][step]  32-bit words, 2 halves of 64 inputs, 4 steps
// A word is one lane's A operand of one mma.m16n8k16, of inputs in their own order: step s of lane
// 4g + t has inputs 64 half + 16s + 2t + {0, 1, 8, 9} of outputs g and g + 8. So a lane's 16-byte
// load serves four steps. Nibbles of a word, from the lowest, as (which of the four, output):
//   (0, g) (0, g+8) (2, g) (2, g+8) (1, g) (1, g+8) (3, g) (3, g+8)
// so that masking a word with 0x000f000f << 4i gives the operand's pairs.
//
//   scales[tile][scale group][8]  pairs of float16: outputs g and g + 8
//   zeros[tile][scale group][8]   pairs of bytes, likewise; absent where all zeros are 8
// Groups shorter than 128 are stored for every 32 or 64 inputs. A group whose length is not a
// multiple of 32 begins at a multiple of its length rounded up to 32, 64 or 128: x is then spread
// out likewise, with zeros in between.
#ifndef NIBBLE_OPS_CUDA_LINEAR_Q4_KERNELS_CUH_
#define NIBBLE_OPS_CUDA_LINEAR_Q4_KERNELS_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "src/ops/cuda/async_copy.cuh"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/linear_q4.h"
#include "src/ops/cuda/linear_q4_form.h"

namespace nibble::cuda::q4 {

inline constexpr int kTileOutputs = 16;
inline constexpr int kUnitInputs = 128;
inline constexpr int kUnitBytes = kTileOutputs * kUnitInputs / 2;

struct Geometry {
  int out_features, in_features;
  int group_length;     // as on disk
  int padded_group;     // packed inputs from one group to the next
  int granule;          // 32, 64 or 128: packed inputs for which kernels apply one scale
  int tiles, units;     // of outputs, of packed inputs
  int scale_groups;     // stored for a tile
  int units_per_scale;  // where the granule is 128; else 1
  bool spreads;         // whether x must be spread out first

  static Geometry Of(int64_t out_features, int64_t in_features, int64_t group_length);
  int scales_per_unit() const { return kUnitInputs / granule; }
  int packed_inputs() const { return units * kUnitInputs; }
};

// A packed weight, as an argument of kernels.
struct Weights {
  const uint4* codes;     // [tiles, units, 2, 32]
  const __half2* scales;  // [tiles, scale_groups, 8]
  const uchar2* zeros;    // [tiles, scale_groups, 8], or null
  const uint32_t* largest;  // scale's magnitude, float16 bits
  int tiles, units, scale_groups, scales_per_unit;
  uint32_t scale_of_unit;  // 2^20 / units_per_scale, rounded up

  // The first stored scale group of a unit. Exact for up to 1024 units.
  __device__ int ScaleGroup(int unit) const {
    return static_cast<int>((static_cast<uint32_t>(unit * scales_per_unit) * scale_of_unit) >> 20);
  }
};

Weights WeightsOf(const Geometry& geometry, const Q4Layout& layout, const void* packed);

// The other arguments of a product. kLinks: with what it takes over of norms (LinkedNorms).
template <typename T, bool kLinks = false>
struct Product {
  const T* x;         // [rows, in], in and x_stride multiples of 8, x aligned to 16 bytes
  T* out;             // [rows, outputs] or half of that under kSiluMul
  const float* bias;  // [outputs], or null
  int64_t x_stride, out_stride;
  int rows, in, outputs;
  Epilogue epilogue;
};
template <typename T>
struct Product<T, true> : Product<T> {
  struct Before {
    const float* squares;  // null: there is no such norm
    float epsilon;
    float scale;  // of the sums, which takes back that of x
  } before;
  struct Behind {
    const float* gain;  // null: there is no such norm
    float scale;
    T* scaled;
    int64_t scaled_stride;
    float* squares;
  } behind;

  // From a row's sum of squares.
  __device__ float Factor(float squares) const {
    return rsqrtf(squares / static_cast<float>(this->in) + before.epsilon) * before.scale;
  }
};

// Units of work [0, total) in shares that differ by one at most, the longer ones first.
struct EvenShares {
  int each, longer;  // units of a block; how many blocks have one more
  static EvenShares Of(int64_t total, int64_t blocks) {
    return {static_cast<int>(total / blocks), static_cast<int>(total % blocks)};
  }
  __device__ int Begin(int block) const { return block * each + min(block, longer); }
  __device__ int BlockOf(int unit) const {
    const int in_longer = longer * (each + 1);
    return unit < in_longer ? unit / (each + 1) : longer + (unit - in_longer) / each;
  }
};

// Scratch: rows of x spread out, then partial sums.
size_t SpreadBytes(int64_t rows, int64_t in_features);
size_t PartialBytes(int multiprocessors, int64_t rows);

// A unit by its parts; units of a tile follow each other, then come the next rows.
struct Place {
  int unit, row_tile, output_tile;
  __device__ Place(int index, int units, int row_tiles)
      : unit(index % units),
        row_tile(index / units % row_tiles),
        output_tile(index / units / row_tiles) {}
  __device__ void Advance(int units, int row_tiles) {
    if (++unit < units) return;
    unit = 0;
    if (++row_tile < row_tiles) return;
    row_tile = 0;
    ++output_tile;
  }
};

// At most kSmallRows rows, with links kMostLinkedRows. False where x does not fit on chip, so that
// LargeProduct must do it; with links it does.
// Under kBatchInvariant a row's sums depend neither on the other rows nor on how many there are;
// those of LargeProduct depend on how many tiles of rows there are.
inline constexpr int kSmallRows = 16;
template <typename T, bool kLinks>
bool SmallProduct(Stream& stream, const Geometry& geometry, const Weights& weights,
                  const Product<T, kLinks>& product, CudaKernels kernels);
template <typename T>
void LargeProduct(Stream& stream, const Geometry& geometry, const Weights& weights,
                  const Product<T>& product, float* partials);

// For any number of rows on Hopper, of weights that do not spread; whether this device has it, and
// the form that it should take there.
bool HasHopperProduct();
HopperForm ChooseHopperForm(const Geometry& geometry, int64_t rows);
template <typename T>
void HopperProduct(Stream& stream, const Geometry& geometry, const Weights& weights,
                   const Product<T>& product, const HopperForm& form);

// On the device ---------------------------------------------------------------------------------

// How a word's nibbles become the A operand. What the multiplication then sees for a code c is
//   (c + kOffset) / kLowUnit  for outputs 0 … 7 of a tile,  / kHighUnit for 8 … 15.
template <typename T>
struct Codes;

// float16: the code lands in the mantissa of a subnormal number, which needs no conversion at all;
// the tensor cores take subnormal numbers at full speed.
template <>
struct Codes<__half> {
  static constexpr float kOffset = 0, kLowUnit = 0x1p24f, kHighUnit = 0x1p20f;
  static __device__ void Expand(uint32_t word, uint32_t (&a)[4]) {
    a[0] = word & 0x000f000fu;
    a[1] = word & 0x00f000f0u;
    word >>= 8;
    a[2] = word & 0x000f000fu;
    a[3] = word & 0x00f000f0u;
  }
  // What Expand makes of a zero, twice.
  static __device__ uint32_t LowZero(uint32_t zero) { return zero * 0x00010001u; }
  static __device__ uint32_t HighZero(uint32_t zero) { return zero * 0x00100010u; }
  static __device__ uint32_t Subtract(uint32_t a, uint32_t b) {
    const __half2 d =
        __hsub2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
    return *reinterpret_cast<const uint32_t*>(&d);
  }
};

// bfloat16: products of subnormal numbers would underflow, so the code is added to 128.
template <>
struct Codes<__nv_bfloat16> {
  static constexpr float kOffset = 128, kLowUnit = 1, kHighUnit = 1;
  static __device__ void Expand(uint32_t word, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = ((word >> (4 * i)) & 0x000f000fu) | 0x43004300u;
  }
  static __device__ uint32_t LowZero(uint32_t zero) { return zero * 0x00010001u | 0x43004300u; }
  static __device__ uint32_t HighZero(uint32_t zero) { return LowZero(zero); }
  static __device__ uint32_t Subtract(uint32_t a, uint32_t b) {
    const __nv_bfloat162 d = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                     *reinterpret_cast<const __nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&d);
  }
};

// d = a · b + c: 16 outputs by 8 rows of x. Lane 4g + t has d for (output, row) (g, 2t), (g, 2t +
// 1), (g + 8, 2t), (g + 8, 2t + 1).
template <typename T>
__device__ void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                            const float (&c)[4]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  }
}

// Transposes the 4 x 4 matrix whose row t is in lane 4g + t. All lanes of the warp must take part.
__device__ inline void TransposeQuad(uint32_t (&row)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2) {  // within 2 x 2 blocks, then the blocks
    const bool is_set = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & bit) != 0) continue;
      const uint32_t received = __shfl_xor_sync(~0u, is_set ? row[i] : row[i + bit], bit);
      if (is_set) {
        row[i] = received;
      } else {
        row[i + bit] = received;
      }
    }
  }
}

// In order with asynchronous copies, unlike a plain load.
__device__ inline uint4 LoadShared16(uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
// A pair of scales, a pair of zeros.
__device__ inline __half2 LoadSharedPair(uint32_t address) {
  uint32_t bits;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bits) : "r"(address) : "memory");
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ inline float2 LoadSharedScales(uint32_t address) {
  return __half22float2(LoadSharedPair(address));
}
__device__ inline uint16_t LoadSharedBytes(uint32_t address) {
  uint16_t bits;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(address) : "memory");
  return bits;
}
__device__ inline uchar2 LoadSharedZeros(uint32_t address) {
  const uint16_t bits = LoadSharedBytes(address);
  return uchar2{static_cast<unsigned char>(bits & 0xff), static_cast<unsigned char>(bits >> 8)};
}

// What Epilogue::kAdd adds to a fragment of a tile: outputs first_output + {g, g + 8} of rows row
// and row + 1, as MultiplyAdd has them. All loads at once, and apart from StoreFragment, so that
// they can be under way early.
template <typename T>
__device__ void LoadAddends(const Product<T>& p, int first_output, int g, int row,
                            float (&addends)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int output = first_output + g + i / 2 * 8, r = row + i % 2;
    const bool wanted = p.epilogue == Epilogue::kAdd && output < p.outputs && r < p.rows;
    addends[i] = wanted ? HalfTraits<T>::ToFloat(p.out[r * p.out_stride + output]) : 0;
  }
}

// Adds the bias to that fragment, d, to which addends are added already, and writes it. Lanes of
// outputs g and g ^ 1 differ by kPartner and must call this together.
template <int kPartner, typename T>
__device__ void StoreFragment(const Product<T>& p, int first_output, int g, int row,
                              float (&d)[4]) {
#pragma unroll
  for (int high = 0; high < 2; ++high) {
    const int output = first_output + g + 8 * high;
    const bool inside = output < p.outputs;
    const float bias = p.bias != nullptr && inside ? p.bias[output] : 0;
    float &d0 = d[2 * high], &d1 = d[2 * high + 1];
    d0 += bias;
    d1 += bias;
    if (p.epilogue == Epilogue::kSiluMul) {
      // The gate's lane finishes the first row, the up's lane the second.
      const bool is_up = (g & 1) != 0;
      const float received = __shfl_xor_sync(~0u, is_up ? d0 : d1, kPartner);
      const float gate = is_up ? received : d0;
      const float up = is_up ? d1 : received;
      const int r = row + (is_up ? 1 : 0);
      if (inside && r < p.rows) {
        p.out[r * p.out_stride + output / 2] = HalfTraits<T>::FromFloat(SiluMul(gate, up));
      }
    } else if (inside) {
      T* to = p.out + row * p.out_stride + output;
      if (row < p.rows) to[0] = HalfTraits<T>::FromFloat(d0);
      if (row + 1 < p.rows) to[p.out_stride] = HalfTraits<T>::FromFloat(d1);
    }
  }
}

// Shared memory that one block may have, and that all blocks of a multiprocessor have together.
// Asked for once, as HasHopperProduct is: a process uses one device.
struct SharedMemory {
  size_t of_block, of_multiprocessor;
  static SharedMemory OfDevice();
};

}  // namespace nibble::cuda::q4

#endif  // NIBBLE_OPS_CUDA_LINEAR_Q4_KERNELS_CUH_
