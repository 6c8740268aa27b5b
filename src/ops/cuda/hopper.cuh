// Hopper's warpgroup products, bulk copies, and barriers in shared memory (PTX ISA, "wgmma",
// "cp.async.bulk", "mbarrier"). Their code exists only where a file is compiled for sm_90a;
// NIBBLE_HOPPER_CODE says so.
#ifndef NIBBLE_OPS_CUDA_HOPPER_CUH_
#define NIBBLE_OPS_CUDA_HOPPER_CUH_

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "src/ops/cuda/half.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NIBBLE_HOPPER_CODE 1
#else
#define NIBBLE_HOPPER_CODE 0
#endif

#if NIBBLE_HOPPER_CODE
namespace nibble::cuda {

// Barriers, by their address in shared memory. A phase ends when `count` arrivals have come
// and all bytes that they expect.
__device__ inline void InitializeBarrier(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ inline void PublishBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// An arrival that has the phase wait for so many bytes, too.
__device__ inline void ArriveExpecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// An arrival once the thread's asynchronous copies so far are there.
__device__ inline void ArriveAfterCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity (0, 1, 0, ...) has ended.
__device__ inline void WaitForPhase(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Whether it has; may wait a little for it.
__device__ inline bool HasPhaseEnded(uint32_t barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended != 0;
}

// A shared address of this block's, as that of the same variable in the cluster's block of that
// rank.
__device__ inline uint32_t MapToRank(uint32_t shared, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared), "r"(rank));
  return mapped;
}
// All threads of the cluster have come. Nothing that was written is seen because of it.
__device__ inline void ArriveAtCluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void WaitForCluster() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
// Copies `bytes` of this block's shared memory to a mapped address, whose block's barrier counts
// them.
__device__ inline void CopyToMapped(uint32_t mapped, uint32_t shared, int bytes,
                                    uint32_t mapped_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(mapped),
      "r"(shared), "r"(bytes), "r"(mapped_barrier)
      : "memory");
}

// Copies the box of a tensor map at these coordinates, the fastest one first; the barrier counts
// its bytes, also those that lie outside of the tensor and become zeros.
__device__ inline void CopyBox(uint32_t shared, const CUtensorMap& map, int c0, int c1, int c2,
                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ inline void CopyBox(uint32_t shared, const CUtensorMap& map, int c0, int c1,
                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}

// Copies `bytes`, a multiple of 16 as are both addresses, which the barrier counts.
__device__ inline void CopyBulk(uint32_t shared, const void* global, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// Registers of each thread of a warpgroup from now on, of those that its block was launched with.
template <int kRegisters>
__device__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Products of a warpgroup: sums[64 x N] += a[64 x 16] · b[16 x N]. A warp holds 16 rows of `a` and
// of the sums, in the fragments of mma.m16n8k16. b lies in shared memory, by a descriptor. The
// registers of a and of the sums belong to the product until a wait says that it is done.
__device__ inline void BeginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving a register's uses across.
__device__ inline void Pin(float& value) { asm volatile("" : "+f"(value)::"memory"); }

// A matrix whose rows of 64 elements lie one after the other, 128 bytes each, at a multiple of 1024
// bytes, their 16-byte chunk c at place c ^ (row % 8); `panel_bytes` from 64 columns to the next.
// As an operand whose depth runs along the rows, 32 bytes further is the next step's. As a
// transposed one, whose depth runs from row to row, that lies 16 rows further, and panels follow by
// themselves.
__device__ inline uint64_t SwizzledDescriptor(uint32_t shared, int panel_bytes) {
  return static_cast<uint64_t>((shared & 0x3ffff) >> 4) |
         static_cast<uint64_t>(panel_bytes >> 4) << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
// What threads wrote to shared memory, and others have waited for, becomes visible to products.
__device__ inline void ShowToProducts() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// accumulate: 0 replaces the sums.
template <typename T, int kColumns>
__device__ void MultiplyWarpgroup(float (&s)[kColumns / 2], const uint32_t (&a)[4], uint64_t b,
                                  int accumulate);
// The same with b transposed.
template <typename T, int kColumns>
__device__ void MultiplyTransposed(float (&s)[kColumns / 2], const uint32_t (&a)[4], uint64_t b,
                                   int accumulate);
// The same with a in shared memory too.
template <typename T, int kColumns>
__device__ void MultiplyShared(float (&s)[kColumns / 2], uint64_t a, uint64_t b, int accumulate);

#define NIBBLE_REGISTERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NIBBLE_REGISTERS_16 NIBBLE_REGISTERS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NIBBLE_REGISTERS_24 NIBBLE_REGISTERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define NIBBLE_REGISTERS_32 \
  NIBBLE_REGISTERS_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NIBBLE_REGISTERS_48 \
  NIBBLE_REGISTERS_32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NIBBLE_REGISTERS_64 \
  NIBBLE_REGISTERS_48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NIBBLE_REGISTERS_80 \
  NIBBLE_REGISTERS_64       \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define NIBBLE_EIGHT_SUMS(s, i)                                                       \
  "+f"(s[i]), "+f"(s[(i) + 1]), "+f"(s[(i) + 2]), "+f"(s[(i) + 3]), "+f"(s[(i) + 4]), \
      "+f"(s[(i) + 5]), "+f"(s[(i) + 6]), "+f"(s[(i) + 7])
#define NIBBLE_SUMS_8(s) NIBBLE_EIGHT_SUMS(s, 0)
#define NIBBLE_SUMS_16(s) NIBBLE_SUMS_8(s), NIBBLE_EIGHT_SUMS(s, 8)
#define NIBBLE_SUMS_24(s) NIBBLE_SUMS_16(s), NIBBLE_EIGHT_SUMS(s, 16)
#define NIBBLE_SUMS_32(s) NIBBLE_SUMS_24(s), NIBBLE_EIGHT_SUMS(s, 24)
#define NIBBLE_SUMS_48(s) NIBBLE_SUMS_32(s), NIBBLE_EIGHT_SUMS(s, 32), NIBBLE_EIGHT_SUMS(s, 40)
#define NIBBLE_SUMS_64(s) NIBBLE_SUMS_48(s), NIBBLE_EIGHT_SUMS(s, 48), NIBBLE_EIGHT_SUMS(s, 56)
#define NIBBLE_SUMS_80(s) NIBBLE_SUMS_64(s), NIBBLE_EIGHT_SUMS(s, 64), NIBBLE_EIGHT_SUMS(s, 72)
// A, B, P: the numbers of the operands after the sums.
#define NIBBLE_PRODUCT(NAME, T, TYPE, COLUMNS, SUMS, A, B, P, TRANSPOSED)                       \
  template <>                                                                                   \
  __device__ inline void NAME<T, COLUMNS>(float(&s)[SUMS], const uint32_t(&a)[4], uint64_t b,   \
                                          int accumulate) {                                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                          \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE    \
                 " {" NIBBLE_REGISTERS_##SUMS "}, {" A "}, " B ", p, 1, 1, " #TRANSPOSED ";\n}" \
                 : NIBBLE_SUMS_##SUMS(s)                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate)          \
                 : "memory");                                                                   \
  }
#define NIBBLE_SHARED_PRODUCT(T, TYPE, COLUMNS, SUMS, A, B, P)                               \
  template <>                                                                                \
  __device__ inline void MultiplyShared<T, COLUMNS>(float(&s)[SUMS], uint64_t a, uint64_t b, \
                                                    int accumulate) {                        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                       \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE \
                 " {" NIBBLE_REGISTERS_##SUMS "}, " A ", " B ", p, 1, 1, 0, 0;\n}"           \
                 : NIBBLE_SUMS_##SUMS(s)                                                     \
                 : "l"(a), "l"(b), "r"(accumulate)                                           \
                 : "memory");                                                                \
  }
#define NIBBLE_PRODUCTS(T, TYPE)                                                              \
  NIBBLE_PRODUCT(MultiplyWarpgroup, T, TYPE, 16, 8, "%8, %9, %10, %11", "%12", "%13", 0)      \
  NIBBLE_PRODUCT(MultiplyWarpgroup, T, TYPE, 32, 16, "%16, %17, %18, %19", "%20", "%21", 0)   \
  NIBBLE_PRODUCT(MultiplyWarpgroup, T, TYPE, 48, 24, "%24, %25, %26, %27", "%28", "%29", 0)   \
  NIBBLE_PRODUCT(MultiplyWarpgroup, T, TYPE, 64, 32, "%32, %33, %34, %35", "%36", "%37", 0)   \
  NIBBLE_PRODUCT(MultiplyWarpgroup, T, TYPE, 96, 48, "%48, %49, %50, %51", "%52", "%53", 0)   \
  NIBBLE_PRODUCT(MultiplyWarpgroup, T, TYPE, 128, 64, "%64, %65, %66, %67", "%68", "%69", 0)  \
  NIBBLE_PRODUCT(MultiplyWarpgroup, T, TYPE, 160, 80, "%80, %81, %82, %83", "%84", "%85", 0)  \
  NIBBLE_PRODUCT(MultiplyTransposed, T, TYPE, 64, 32, "%32, %33, %34, %35", "%36", "%37", 1)  \
  NIBBLE_PRODUCT(MultiplyTransposed, T, TYPE, 128, 64, "%64, %65, %66, %67", "%68", "%69", 1) \
  NIBBLE_SHARED_PRODUCT(T, TYPE, 128, 64, "%64", "%65", "%66")
NIBBLE_PRODUCTS(__half, "f16")
NIBBLE_PRODUCTS(__nv_bfloat16, "bf16")
#undef NIBBLE_PRODUCTS
#undef NIBBLE_PRODUCT
#undef NIBBLE_SHARED_PRODUCT
#undef NIBBLE_SUMS_80
#undef NIBBLE_SUMS_64
#undef NIBBLE_SUMS_48
#undef NIBBLE_SUMS_32
#undef NIBBLE_SUMS_24
#undef NIBBLE_SUMS_16
#undef NIBBLE_SUMS_8
#undef NIBBLE_EIGHT_SUMS
#undef NIBBLE_REGISTERS_80
#undef NIBBLE_REGISTERS_64
#undef NIBBLE_REGISTERS_48
#undef NIBBLE_REGISTERS_32
#undef NIBBLE_REGISTERS_24
#undef NIBBLE_REGISTERS_16
#undef NIBBLE_REGISTERS_8

}  // namespace nibble::cuda
#endif  // NIBBLE_HOPPER_CODE

#endif  // NIBBLE_OPS_CUDA_HOPPER_CUH_
