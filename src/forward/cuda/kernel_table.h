// The launches over tensors.
#pragma once

#include "forward/cuda/table.h"

namespace moetrim::cuda {

extern const Kernels kKernels;
void dequantise_tensor(Code code, const at::Tensor& codes, const at::Tensor& scales, std::int64_t scale_rows,
                       std::int64_t scale_cols, at::Tensor& out);

/// The stream on which work for a tensor's device is queued, made the current device. Defined in device.cpp.
Stream stream_of(const at::Tensor& x);
/// Throws what the last launch complained of.
void check_launch();

}  // namespace moetrim::cuda
