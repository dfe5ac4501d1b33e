// Scales and zeros of a weight as fp32, in one order for all packings.
#pragma once

#include <cstdint>
#include <vector>

#include "moetrim/quantised.h"

namespace moetrim::quantised_detail {

/// Value = (code - zero) * scale.
struct Scales {
  std::int64_t row_groups = 0;       ///< G
  std::vector<float> scale;          ///< [ceil(N / scale_rows), G]
  std::vector<float> zero;           ///< like scale; empty where all are 0
  std::vector<std::int32_t> order;   ///< [K] group of every column, within [0, G); empty where it is column / scale_cols
};

/// Reads the scales, zeros, order and shape of a weight whose layout was checked and whose bytes are there.
/// @throws InvalidInput on a scale that is not finite, an order out of range, a shape that is another one.
Scales read_scales(const PackedWeight& weight, const Packing& packing);

}  // namespace moetrim::quantised_detail
