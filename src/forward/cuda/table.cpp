// The library's functions over tensors: pointers, sizes and the current stream, handed to the launches.

#include "forward/cuda/table.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>

#include "forward/cuda/launch.h"

namespace moetrim::cuda {

namespace {

Element element(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "the CUDA kernels know fp32 and bf16");
  return x.scalar_type() == at::kFloat ? Element::fp32 : Element::bf16;
}

std::string problem(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return fmt::format("{}; is the NVIDIA driver installed, and new enough for CUDA {}.{}?", cudaGetErrorString(error),
                       CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  if (device >= count) return fmt::format("there are {} CUDA devices, numbered from 0", count);
  cudaDeviceProp properties{};
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  if (properties.major < 8) {
    return fmt::format("{} has compute capability {}.{}; 8.0 or newer is needed for bf16", properties.name, properties.major,
                       properties.minor);
  }
  return "";
}

void scatter_rows_of(const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates, at::Tensor& sum, at::Tensor& norms,
                     at::Tensor& max_abs) {
  if (f.size(0) == 0) return;
  const c10::cuda::CUDAGuard guard(f.device());
  scatter_rows(element(f), f.const_data_ptr(), rows.const_data_ptr<std::int32_t>(), gates.const_data_ptr<float>(), f.size(0),
               f.size(1), sum.mutable_data_ptr<float>(), norms.mutable_data_ptr<float>(), max_abs.mutable_data_ptr<float>(),
               c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

constexpr Table kTable{.problem = problem, .scatter_rows = scatter_rows_of};

}  // namespace

}  // namespace moetrim::cuda

extern "C" __attribute__((visibility("default"))) const moetrim::cuda::Table* moetrim_cuda_table() {
  return &moetrim::cuda::kTable;
}
