// A normalisation as the loops and the CUDA kernels take it. Knows nothing of LibTorch.
#pragma once

namespace moetrim::kernels {

struct NormArguments {
  const float* weight = nullptr;  ///< null: ones
  const float* bias = nullptr;    ///< not null: mean and variance instead of the mean square
  float epsilon = 0;
  bool weight_in_fp32 = false;    ///< no rounding before the weight
};

}  // namespace moetrim::kernels
