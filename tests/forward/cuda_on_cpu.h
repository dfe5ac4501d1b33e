// Runs the code of CUDA kernels on the CPU, so that it can be tested where no GPU is: a block's threads are coroutines of one
// thread that take turns at barriers and shuffles. What it cannot show: races between barriers, alignment faults, speed.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "forward/cuda/types.h"

#define __global__
#define __device__
#define __shared__ static  // blocks run one after another

struct Index {
  unsigned x = 0;
};
// Of the thread whose turn it is.
extern Index threadIdx, blockIdx, blockDim, gridDim;

namespace moetrim::cuda {

/// Calls body once for every thread of every block.
void run_blocks(std::int64_t blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body);
float* shared_floats();
/// Waits until all threads of the block, or of the warp, that have not returned are here.
void wait_for_block();
void wait_for_warp();
/// The value that the warp's thread `lane ^ mask` brought.
double exchange(double value, int mask);

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, unsigned threads, std::size_t shared_bytes, Stream,
            Arguments... arguments) {
  run_blocks(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace moetrim::cuda

inline void __syncthreads() { moetrim::cuda::wait_for_block(); }
inline void __syncwarp() { moetrim::cuda::wait_for_warp(); }
template <class Real>
Real __shfl_xor_sync(unsigned, Real value, int mask) {
  return static_cast<Real>(moetrim::cuda::exchange(value, mask));
}

struct __nv_bfloat16 {
  std::uint16_t bits = 0;
};
inline float __bfloat162float(__nv_bfloat16 v) { return std::bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  if (std::isnan(v)) return {0x7FFF};
  return {static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16)};
}
inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
