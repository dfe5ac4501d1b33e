// How numbers are held while a layer runs.
#pragma once

#include <ATen/core/Tensor.h>

#include "moetrim/forward.h"

namespace moetrim {

/// bf16 on a CPU without bf16 GEMM instructions runs as fp32 arithmetic on values that are rounded to bf16 wherever a bf16
/// run would store them: the same results as with the instructions (up to the order of sums), at the speed of fp32.
struct Numerics {
  Precision precision = Precision::fp32;
  bool bf16_in_fp32 = false;

  static Numerics choose(Precision precision, const at::Device& device);

  /// Of activations and weights inside a layer.
  at::ScalarType tile() const { return precision == Precision::bf16 && !bf16_in_fp32 ? at::kBFloat16 : wide(); }
  /// Of what is kept for all tokens between the steps of a layer.
  at::ScalarType stored() const { return precision == Precision::bf16 ? at::kBFloat16 : wide(); }
  /// Of sums, norms, angles and routing.
  at::ScalarType wide() const { return precision == Precision::fp64 ? at::kDouble : at::kFloat; }
};

/// Of a weight that is multiplied.
std::uint64_t matrix_element_bytes(Precision precision);

}  // namespace moetrim
