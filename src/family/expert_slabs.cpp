// Where one expert lies in a tensor that holds all of them.

#include "family/expert_slabs.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

using Lengths = std::vector<std::int64_t>::const_iterator;

std::uint64_t product(Lengths begin, Lengths end) {
  return static_cast<std::uint64_t>(std::accumulate(begin, end, std::int64_t{1}, std::multiplies<>()));
}

}  // namespace

std::optional<std::size_t> expert_axis(const Tensor& tensor, const TensorPlace& place) {
  const auto& axes = place.rule->axes;
  const auto axis = static_cast<std::size_t>(std::find(axes.begin(), axes.end(), Axis::E) - axes.begin());
  if (axis == axes.size()) return std::nullopt;
  const bool shared = axis >= tensor.shape.size() || tensor.shape == std::vector<std::int64_t>{1};
  return place.part != Part::values && shared ? std::nullopt : std::optional(axis);
}

ExpertSlabs expert_slabs(const Tensor& tensor, std::size_t axis, std::string_view purpose) {
  const auto at = tensor.shape.begin() + static_cast<std::ptrdiff_t>(axis);
  ExpertSlabs out{.outer = product(tensor.shape.begin(), at), .experts = static_cast<std::uint64_t>(*at)};
  if (out.outer == 0 || out.experts == 0) return out;
  const std::uint64_t bits = product(at + 1, tensor.shape.end()) * static_cast<std::uint64_t>(dtype_bits(tensor.dtype));
  if (bits % 8 != 0) {
    throw InvalidInput(fmt::format("tensor {}: the part of one expert has {} bits and does not end on a byte, so it cannot be {}",
                                   tensor.name, bits, purpose));
  }
  out.bytes = bits / 8;
  return out;
}

}  // namespace moetrim
