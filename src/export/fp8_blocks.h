// A matrix to FP8 codes with one scale per block, as block-quantised checkpoints are made: scale = max |w| / 448.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "moetrim/checkpoint.h"

namespace moetrim::export_detail {

/// The nearest E4M3 number, ties to even; 448 for what is larger. NaN stays NaN.
std::uint8_t to_e4m3(float value);

struct Fp8Blocks {
  std::vector<std::byte> codes;   ///< [rows, cols]
  std::vector<std::byte> scales;  ///< [ceil(rows / block_rows), ceil(cols / block_cols)] of the scale's type
};

/// Values [rows, cols] to codes and scales. A scale that its type cannot hold is rounded up, so that no code is cut off; a block
/// of zeros has the scale 1.
/// @param scale   type of the scales: F32, BF16, F8_E8M0 or U8
/// @param tensor  for messages
/// @throws InvalidInput when a value is infinite, or for another type.
void quantise_blocks(std::span<const float> values, std::size_t cols, std::size_t block_rows, std::size_t block_cols, Dtype scale,
                     std::string_view tensor, Fp8Blocks& out);

}  // namespace moetrim::export_detail
