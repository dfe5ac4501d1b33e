// Opens libmoetrim_cuda.so when a device is asked for: LibTorch's CUDA libraries cost every start 0.4 s and 350 MB.
#pragma once

#include <string>

#include <ATen/core/Tensor.h>

#include "forward/cuda/table.h"

namespace moetrim::cuda {

/// The library's functions. It is opened once, and must be before LibTorch is first asked for CUDA.
/// @throws InvalidInput when the program was built without CUDA, or the library or what it needs cannot be loaded.
const Table& library();

/// The device of a name: "cpu", "cuda" or "cuda:N".
/// @throws UsageError for another name; InvalidInput when the device cannot be used.
at::Device open_device(const std::string& name);

}  // namespace moetrim::cuda
