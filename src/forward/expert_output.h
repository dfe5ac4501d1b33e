// CUDA kernel over an expert's output: weighted scatter and output statistics in one pass.
#pragma once

#include <ATen/core/Tensor.h>

namespace moetrim::kernels {

/// As kernels::scatter_rows, for tensors on a CUDA device, on its current stream.
void expert_output_cuda(const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates, at::Tensor& sum,
                        at::Tensor& norms, at::Tensor& max_abs);

}  // namespace moetrim::kernels
