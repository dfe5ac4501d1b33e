// CUDA kernel over an expert's output: one block per row reads the row once, adds it to the token's sum with its gate
// weight, and reduces its norm and largest magnitude. Rows of a tile belong to different tokens: no atomics.

#include "forward/expert_output.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_bf16.h>

namespace moetrim::kernels {

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

void expert_output_cuda(const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates, at::Tensor& sum,
                        at::Tensor& norms, at::Tensor& max_abs) {
  if (f.size(0) == 0) return;
  const c10::cuda::CUDAGuard guard(f.device());
  const auto stream = at::cuda::getCurrentCUDAStream();
  const auto blocks = static_cast<unsigned>(f.size(0));
  const auto launch = [&](const auto* data) {
    expert_output<<<blocks, kThreads, 0, stream>>>(data, rows.const_data_ptr<int>(), gates.const_data_ptr<float>(), f.size(1),
                                                   sum.mutable_data_ptr<float>(), norms.mutable_data_ptr<float>(),
                                                   max_abs.mutable_data_ptr<float>());
  };
  if (f.scalar_type() == at::kFloat) {
    launch(f.const_data_ptr<float>());
  } else {
    launch(reinterpret_cast<const __nv_bfloat16*>(f.const_data_ptr<at::BFloat16>()));
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace moetrim::kernels
