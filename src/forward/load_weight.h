// One weight: its bytes to a tensor, dequantised where it is packed.
#pragma once

#include <array>

#include <ATen/core/Tensor.h>

#include "forward/kernels.h"
#include "forward/numerics.h"
#include "forward/weight_stream.h"
#include "moetrim/family.h"

namespace moetrim {

/// Where the parts of a weight lie in memory; null where it has none.
using PartBytes = std::array<const std::byte*, kPartCount>;

/// The ranges of a weight's parts, in the order of `Part`; of one expert where the weight is fused and `expert` >= 0.
void append_ranges(const Weight& weight, int expert, WeightGroup& group);
/// Goes through a group that append_ranges() made: takes the weight's parts from the front of `bytes`.
PartBytes take_parts(const Weight& weight, int expert, const std::byte*& bytes);

/// How a value becomes one of the run: in a bf16 run it is rounded to bf16 first, unless it is wanted `exact`.
struct Conversion {
  at::ScalarType type;
  const Numerics& numerics;
  const at::Device& device;
  bool exact = false;
};

/// A matrix [N, K] (of one expert where the weight is fused), or a vector or convolution in its own shape. Shares the memory
/// of the bytes where nothing had to be converted; may be a transposed view.
at::Tensor load_weight(const Model& model, const Weight& weight, const PartBytes& bytes, const Conversion& conversion);

/// A norm of the family's kind; weight and bias f32, undefined where there is none.
Norm make_norm(const Model& model, at::Tensor weight, at::Tensor bias = {});

/// The values, contiguous and in memory of their own: the buffer under a view goes back to its stream.
at::Tensor owned(const at::Tensor& values, const PartBytes& bytes);

/// Rows of two matrices below one another, without a copy more than conversion needs.
at::Tensor load_stacked(const Model& model, const Weight& first, const PartBytes& first_bytes, const Weight& second,
                        const PartBytes& second_bytes, const Conversion& conversion);

}  // namespace moetrim
