// A matrix to FP8 codes with one scale per block, as block-quantised checkpoints are made: scale = max |w| / 448.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "moetrim/checkpoint.h"

namespace moetrim::export_detail {

/// How a matrix is divided. The last blocks may end early.
struct Blocks {
  std::size_t cols = 0;  ///< of the matrix
  std::size_t block_rows = 0, block_cols = 0;
};

/// The nearest E4M3 number, ties to even; 448 for what is larger. NaN stays NaN. Without branches, for vector code.
inline std::uint8_t to_e4m3(float value) {
  constexpr std::int32_t kLargest = 0x43E00000, kLeastNormal = 0x3C800000, kInfinity = 0x7F800000;  // 448, 2^-6
  constexpr float kRound = 0x1.8p23F;  // adding it leaves a whole number in the low bits
  const auto bits = std::bit_cast<std::int32_t>(value);
  const std::int32_t size = bits & 0x7FFFFFFF;
  const std::int32_t held = size < kLargest ? size : kLargest;
  const std::int32_t normal = ((held + 0x7FFFF + (held >> 20 & 1)) >> 20) - (120 << 3);
  const std::int32_t tiny = std::bit_cast<std::int32_t>(std::bit_cast<float>(held) * 512.0F + kRound) & 0xFF;
  std::int32_t code = held < kLeastNormal ? tiny : normal;
  code = size > kInfinity ? 0x7F : code;
  return static_cast<std::uint8_t>(code | (bits >> 24 & 0x80));
}

/// One scale per block, row by row, as its type holds them: rounded up where it cannot, so that no code is cut off, and 1
/// for a block of zeros.
/// @param type    of the scales: F32, BF16, F8_E8M0 or U8
/// @param tensor  for messages
/// @throws InvalidInput when a value is infinite, or for another type.
std::vector<float> block_scales(std::span<const float> values, const Blocks& blocks, Dtype type, std::string_view tensor);

/// The scales' bytes.
void store_scales(std::span<const float> scales, Dtype type, std::vector<std::byte>& out);

/// The codes of values divided by their block's scale.
void encode_blocks(std::span<const float> values, const Blocks& blocks, std::span<const float> scales,
                   std::vector<std::byte>& out);

}  // namespace moetrim::export_detail
