// CUDA kernel over an expert's output: one block per row reads the row once, adds it to the token's sum with its gate
// weight, and reduces its norm and largest magnitude. Rows of a tile belong to different tokens: no atomics.

#include <cuda_bf16.h>

#include "forward/cuda/launch.h"

namespace moetrim::cuda {

namespace {

constexpr int kThreads = 256;

__device__ float widen(float v) { return v; }
__device__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class Element>
__global__ void expert_output(const Element* f, const int* rows, const float* gates, std::int64_t width, float* sum,
                              float* norms, float* max_abs) {
  const std::int64_t row = blockIdx.x;
  const float gate = gates[row];
  float* to = sum + static_cast<std::int64_t>(rows[row]) * width;
  float squares = 0;
  float largest = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads) {
    const float v = widen(f[row * width + i]);
    squares += v * v;
    largest = fmaxf(largest, fabsf(v));
    to[i] += gate * v;
  }
  __shared__ float square_part[kThreads];
  __shared__ float largest_part[kThreads];
  square_part[threadIdx.x] = squares;
  largest_part[threadIdx.x] = largest;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) {
      square_part[threadIdx.x] += square_part[threadIdx.x + step];
      largest_part[threadIdx.x] = fmaxf(largest_part[threadIdx.x], largest_part[threadIdx.x + step]);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    norms[row] = sqrtf(square_part[0]);
    max_abs[row] = largest_part[0];
  }
}

}  // namespace

void scatter_rows(Element element, const void* f, const std::int32_t* rows, const float* gates, std::int64_t count,
                  std::int64_t width, float* sum, float* norms, float* max_abs, cudaStream_t stream) {
  const auto launch = [&](const auto* data) {
    expert_output<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(data, rows, gates, width, sum, norms, max_abs);
  };
  if (element == Element::fp32) {
    launch(static_cast<const float*>(f));
  } else {
    launch(static_cast<const __nv_bfloat16*>(f));
  }
}

}  // namespace moetrim::cuda
