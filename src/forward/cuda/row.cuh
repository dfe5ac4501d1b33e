// What the kernels share: elements in vectors of up to 16 bytes, rounding as a run of that precision stores, sums over a block.
// Compiled without fused multiply-add, so that only the order of sums differs from the CPU loops.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#else
#include "forward/cuda_on_cpu.h"  // of the tests, which run the kernels' code on the CPU
#endif

#include "forward/cuda/launch.h"

namespace moetrim::cuda {

using Bf16 = __nv_bfloat16;

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(Bf16 v) { return __bfloat162float(v); }

template <class E>
__device__ E narrow(float v);
template <>
__device__ inline float narrow<float>(float v) {
  return v;
}
template <>
__device__ inline Bf16 narrow<Bf16>(float v) {
  return __float2bfloat16_rn(v);
}

/// What is left of a value once it was stored.
template <class E>
__device__ float rounded(float v) {
  return widen(narrow<E>(v));
}

/// N neighbours that move at once.
template <class E, int N>
struct alignas(sizeof(E) * N < 16 ? sizeof(E) * N : 16) Pack {
  E at[N];
};
template <int N, class E>
__device__ Pack<E, N> load(const E* from) {
  return *reinterpret_cast<const Pack<E, N>*>(from);
}
template <int N, class E>
__device__ void store(E* to, const Pack<E, N>& pack) {
  *reinterpret_cast<Pack<E, N>*>(to) = pack;
}

__device__ inline float warp_sum(float v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xFFFFFFFFU, v, step);
  return v;
}
__device__ inline double warp_sum(double v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xFFFFFFFFU, v, step);
  return v;
}
__device__ inline float warp_max(float v) {
  for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFU, v, step));
  return v;
}

#ifdef __CUDACC__
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, unsigned threads, std::size_t shared_bytes, Stream stream,
            Arguments... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
}

/// Memory of the block, of the size that it was launched with.
__device__ inline float* shared_floats() {
  extern __shared__ float shared[];
  return shared;
}
#endif

constexpr int kMaxThreads = 256;
constexpr int kMaxWarps = kMaxThreads / 32;

/// The sum over all threads of a block, in every one of them. All threads must take part.
template <class Real>
__device__ Real block_sum(Real v) {
  __shared__ Real of_warp[kMaxWarps];
  v = warp_sum(v);
  __syncthreads();  // the values of an earlier call were read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  Real sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += of_warp[warp];
  return sum;
}

/// Threads for a row that is worked on in packs: whole warps, no more than it has work for.
inline unsigned threads_for(std::int64_t packs) {
  const std::int64_t warps = (packs + 31) / 32;
  return static_cast<unsigned>(warps < 1 ? 1 : (warps > kMaxWarps ? kMaxWarps : warps)) * 32;
}

/// Blocks of kMaxThreads threads for that many steps; a kernel goes on in strides of the whole grid.
inline std::int64_t blocks_for(std::int64_t steps) {
  constexpr std::int64_t kMost = 1 << 16;
  const std::int64_t blocks = (steps + kMaxThreads - 1) / kMaxThreads;
  return blocks < kMost ? blocks : kMost;
}

template <class... Pointers>
bool aligned16(const Pointers*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

/// Calls body(E{}) with the type that an element is.
template <class Body>
void with_element(Element element, Body body) {
  if (element == Element::fp32) {
    body(float{});
  } else {
    body(Bf16{});
  }
}

}  // namespace moetrim::cuda
