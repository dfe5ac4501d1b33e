// Where one expert lies in a tensor that holds all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "moetrim/checkpoint.h"
#include "moetrim/family.h"

namespace moetrim {

/// Which axis of a tensor counts experts; none where all experts share it, like a scale of one number. Of tensors with a rule.
std::optional<std::size_t> expert_axis(const Tensor& tensor, const TensorPlace& place);

/// A tensor with an expert axis is `outer` blocks, one after the other, each with a slab of `bytes` for every expert.
struct ExpertSlabs {
  std::uint64_t outer = 0, experts = 0, bytes = 0;

  std::uint64_t begin(std::uint64_t block, int expert) const {
    return (block * experts + static_cast<std::uint64_t>(expert)) * bytes;
  }
};
/// @param purpose  what cannot be done where a slab does not end on a byte: "moved unchanged". @throws InvalidInput then
ExpertSlabs expert_slabs(const Tensor& tensor, std::size_t axis, std::string_view purpose);

}  // namespace moetrim
