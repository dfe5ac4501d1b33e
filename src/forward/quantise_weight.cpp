// A weight as a few bits would hold it.

#include "forward/quantise_weight.h"

#include <algorithm>
#include <cmath>
#include <span>

#include <ATen/ATen.h>

namespace moetrim {

namespace {

/// To the nearest integer, ties to even, for |value| below 2^22: beyond 2^23 a float has no fraction left.
float nearest(float value) {
  constexpr float kNoFraction = 12582912.0F;  // 1.5 * 2^23
  return (value + kNoFraction) - kNoFraction;
}

void to_signs(std::span<float> group) {
  double sum = 0;
  for (const float w : group) sum += std::abs(w);
  const auto mean = static_cast<float>(sum / static_cast<double>(group.size()));
  for (float& w : group) w = w > 0 ? mean : w < 0 ? -mean : 0.0F;
}

void to_levels(std::span<float> group, int bits) {
  const auto top = static_cast<float>((1 << bits) - 1);
  float least = 0;
  float most = 0;
  for (const float w : group) {
    least = std::min(least, w);
    most = std::max(most, w);
  }
  const float scale = (most - least) / top;
  if (!(scale > 0)) return;  // all zero
  const float zero = nearest(-least / scale);
  for (float& w : group) w = scale * (std::clamp(nearest(w / scale) + zero, 0.0F, top) - zero);
}

}  // namespace

at::Tensor quantise_weight(const at::Tensor& weight, int bits) {
  at::Tensor values = at::empty(weight.sizes(), at::kFloat).copy_(weight);
  const std::int64_t columns = values.size(1);
  float* row = values.mutable_data_ptr<float>();
  for (std::int64_t r = 0; r < values.size(0); ++r, row += columns) {
    for (std::int64_t begin = 0; begin < columns; begin += kQuantisationGroup) {
      const std::span group(row + begin, static_cast<std::size_t>(std::min(kQuantisationGroup, columns - begin)));
      if (bits == 1) {
        to_signs(group);
      } else {
        to_levels(group, bits);
      }
    }
  }
  return values.to(weight.device(), weight.scalar_type());
}

}  // namespace moetrim
