// The experts of a layer as matrices, one at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include "moetrim/family.h"

namespace moetrim {

enum class Projection : std::uint8_t { gate, up, down };

/// [F, H] for gate and up, [H, F] for down, fp64, finite.
/// @throws InvalidInput when values cannot be computed or are not finite.
at::Tensor expert_matrix(const Model& model, int layer, int expert, Projection projection);

}  // namespace moetrim
