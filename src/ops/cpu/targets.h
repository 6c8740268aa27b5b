// Which instruction sets the kernels are compiled for; include before Highway's headers.
//
// A kernel file is compiled once per target. AVX2 and AVX-512 are what servers have, SSE4 what
// small ones and the oldest still have; SSSE3 is left out for the compiler's time, and Arm's
// scalable vectors because the kernels count on vectors of a length known to the compiler (NEON
// serves there). With sanitizers a target takes minutes, so one vector target and the scalar one
// must do.
#ifndef NIBBLE_OPS_CPU_TARGETS_H_
#define NIBBLE_OPS_CPU_TARGETS_H_

#undef HWY_DISABLED_TARGETS
#ifdef NIBBLE_SANITIZED
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif

#endif  // NIBBLE_OPS_CPU_TARGETS_H_
