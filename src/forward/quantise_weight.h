// A weight as a few bits would hold it.
#pragma once

#include <ATen/core/Tensor.h>

namespace moetrim {

/// Columns of a weight that share a scale.
inline constexpr std::int64_t kQuantisationGroup = 128;

/// [N, K] of the weight's type: every value replaced by the one that is stored for it, row by row in groups of
/// kQuantisationGroup columns, the last of which may be shorter. One bit: sign times the group's mean magnitude. More:
/// asymmetric between the group's extremes, 0 always among the levels, round to nearest even. Arithmetic in fp32.
/// Source: MC-MoE (PMQ), the quantiser of its measurement.
at::Tensor quantise_weight(const at::Tensor& weight, int bits);

}  // namespace moetrim
