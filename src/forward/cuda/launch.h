// Launches of the CUDA kernels: plain pointers on the device and a stream, so that the kernels compile without LibTorch.
// Pointers are at least as aligned as their elements; rows are contiguous. `Element` is float or bf16 bits.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace moetrim::cuda {

/// What tiles and stored rows hold.
enum class Element : std::uint8_t { fp32, bf16 };

/// sum[rows[i]] += gates[i] * f[i], and the norm and largest magnitude of f[i]; rows do not repeat. f [n, width].
void scatter_rows(Element element, const void* f, const std::int32_t* rows, const float* gates, std::int64_t count,
                  std::int64_t width, float* sum, float* norms, float* max_abs, cudaStream_t stream);

}  // namespace moetrim::cuda
