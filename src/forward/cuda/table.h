// The boundary between the program and libmoetrim_cuda.so: everything that needs LibTorch's CUDA libraries.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

namespace moetrim::cuda {

/// Functions of the library. Tensors lie on the device, and work is queued on its current stream.
struct Table {
  std::uint64_t size = sizeof(Table);  ///< library and program were built together when this is the same in both

  /// Why the device cannot be used; empty when it can.
  std::string (*problem)(int device);
  /// As kernels::scatter_rows.
  void (*scatter_rows)(const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates, at::Tensor& sum,
                       at::Tensor& norms, at::Tensor& max_abs);
};

}  // namespace moetrim::cuda

/// The one symbol that the program looks up.
extern "C" const moetrim::cuda::Table* moetrim_cuda_table();
