// A matrix to FP8 codes with one scale per block.

#include "export/fp8_blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "quantised/small_float.h"

namespace moetrim::export_detail {

namespace {

constexpr float kLargest = 448;
constexpr std::uint32_t kSign = 1U << 31U;

/// The scale as its type holds it, in fp32: the least number that is not below `wanted`.
float held(float wanted, Dtype type) {
  const auto bits = std::bit_cast<std::uint32_t>(wanted);
  switch (type) {
    case Dtype::f32: return wanted;
    case Dtype::bf16: return std::bit_cast<float>((bits + 0xFFFFU) & 0xFFFF0000U);
    default: return std::bit_cast<float>(std::max((bits + 0x7FFFFFU) & 0x7F800000U, 1U << 23U));  // a power of two
  }
}

void store(float scale, Dtype type, std::vector<std::byte>& out) {
  const auto bits = std::bit_cast<std::uint32_t>(scale);
  const std::uint32_t stored = type == Dtype::f32 ? bits : type == Dtype::bf16 ? bits >> 16U : bits >> 23U;
  const std::size_t bytes = type == Dtype::f32 ? 4 : type == Dtype::bf16 ? 2 : 1;
  const std::size_t at = out.size();
  out.resize(at + bytes);
  std::memcpy(out.data() + at, &stored, bytes);  // little-endian
}

}  // namespace

std::uint8_t to_e4m3(float value) {
  constexpr float kLeastNormal = 0x1p-6F;
  constexpr float kRound = 0x1.8p23F;  // adding and taking it away again rounds to a whole number
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 24U & 0x80U;
  const float size = std::bit_cast<float>(bits & ~kSign);
  std::uint32_t code = 0;
  if (std::isnan(size)) {
    code = 0x7F;
  } else if (size >= kLargest) {
    code = 0x7E;
  } else if (size < kLeastNormal) {
    code = static_cast<std::uint32_t>(size * 512.0F + kRound - kRound);
  } else {
    const std::uint32_t magnitude = bits & ~kSign;
    code = ((magnitude + 0x7FFFFU + (magnitude >> 20U & 1U)) >> 20U) - (120U << 3U);
  }
  return static_cast<std::uint8_t>(sign | code);
}

void quantise_blocks(std::span<const float> values, std::size_t cols, std::size_t block_rows, std::size_t block_cols, Dtype scale,
                     std::string_view tensor, Fp8Blocks& out) {
  if (scale != Dtype::f32 && scale != Dtype::bf16 && scale != Dtype::f8_e8m0 && scale != Dtype::u8) {
    throw InvalidInput(fmt::format("tensor {}: scales of type {} are not written; expected F32, BF16 or F8_E8M0", tensor, dtype_name(scale)));
  }
  const std::size_t rows = cols == 0 ? 0 : values.size() / cols;
  out.codes.resize(values.size());
  out.scales.clear();
  for (std::size_t top = 0; top < rows; top += block_rows) {
    const std::size_t bottom = std::min(rows, top + block_rows);
    for (std::size_t left = 0; left < cols; left += block_cols) {
      const std::size_t right = std::min(cols, left + block_cols);
      float largest = 0;
      for (std::size_t r = top; r < bottom; ++r) {
        for (std::size_t c = left; c < right; ++c) largest = std::max(largest, std::fabs(values[r * cols + c]));
      }
      if (std::isinf(largest)) throw InvalidInput(fmt::format("tensor {}: code times scale is infinite; the file is damaged", tensor));
      const float by = largest == 0 ? 1.0F : held(std::max(largest / kLargest, 0x1p-126F), scale);
      for (std::size_t r = top; r < bottom; ++r) {
        for (std::size_t c = left; c < right; ++c) out.codes[r * cols + c] = static_cast<std::byte>(to_e4m3(values[r * cols + c] / by));
      }
      store(by, scale, out.scales);
    }
  }
}

}  // namespace moetrim::export_detail
