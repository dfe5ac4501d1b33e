// A matrix to FP8 codes with one scale per block. Compiled for speed: see src/CMakeLists.txt.

#include "export/fp8_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::export_detail {

namespace {

constexpr float kLargest = 448;
constexpr std::int32_t kInfinity = 0x7F800000;

std::size_t ceil_divide(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

/// Largest |value| as bits, which are in order as integers are. NaN, which stays a code of its own, says nothing of the
/// scale.
std::int32_t largest_bits(const float* values, std::size_t count, std::int32_t largest) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t size = std::bit_cast<std::int32_t>(values[i]) & 0x7FFFFFFF;
    largest = std::max(largest, size > kInfinity ? 0 : size);
  }
  return largest;
}

/// Bytes may alias anything; without the promise that these do not there would be no vector code.
void encode(const float* __restrict values, std::size_t count, float scale, std::uint8_t* __restrict out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = to_e4m3(values[i] / scale);
}

/// The least number of the type that is not below `wanted`.
float held(float wanted, Dtype type) {
  const auto bits = std::bit_cast<std::uint32_t>(wanted);
  switch (type) {
    case Dtype::f32: return wanted;
    case Dtype::bf16: return std::bit_cast<float>((bits + 0xFFFFU) & 0xFFFF0000U);
    default: return std::bit_cast<float>((bits + 0x7FFFFFU) & 0x7F800000U);  // a power of two
  }
}

float scale_of(float size, Dtype type, std::string_view tensor) {
  if (std::isinf(size)) {
    throw InvalidInput(fmt::format("tensor {}: code times scale is infinite; the file is damaged, download it again",
                                   tensor));
  }
  return size == 0 ? 1.0F : held(std::max(size / kLargest, 0x1p-126F), type);
}

/// Calls act(first value of a row of a block, values in it, block) for every row of every block.
template <class Act>
void each_run(std::size_t rows, const Blocks& blocks, const Act& act) {
  const std::size_t across = ceil_divide(blocks.cols, blocks.block_cols);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t block = 0; block < across; ++block) {
      const std::size_t left = block * blocks.block_cols;
      const std::size_t count = std::min(blocks.block_cols, blocks.cols - left);
      act(row * blocks.cols + left, count, row / blocks.block_rows * across + block);
    }
  }
}

}  // namespace

std::vector<float> block_scales(std::span<const float> values, const Blocks& blocks, Dtype type, std::string_view tensor) {
  if (type != Dtype::f32 && type != Dtype::bf16 && type != Dtype::f8_e8m0 && type != Dtype::u8) {
    throw InvalidInput(fmt::format("tensor {}: scales of type {} are not written; expected F32, BF16 or F8_E8M0", tensor,
                                   dtype_name(type)));
  }
  const std::size_t rows = blocks.cols == 0 ? 0 : values.size() / blocks.cols;
  std::vector<std::int32_t> largest(ceil_divide(rows, blocks.block_rows) * ceil_divide(blocks.cols, blocks.block_cols));
  each_run(rows, blocks, [&](std::size_t at, std::size_t count, std::size_t block) {
    largest[block] = largest_bits(values.data() + at, count, largest[block]);
  });
  std::vector<float> out;
  for (const std::int32_t bits : largest) out.push_back(scale_of(std::bit_cast<float>(bits), type, tensor));
  return out;
}

void store_scales(std::span<const float> scales, Dtype type, std::vector<std::byte>& out) {
  const std::size_t bytes = type == Dtype::f32 ? 4 : type == Dtype::bf16 ? 2 : 1;
  const int shift = type == Dtype::f32 ? 0 : type == Dtype::bf16 ? 16 : 23;
  out.resize(scales.size() * bytes);
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const std::uint32_t stored = std::bit_cast<std::uint32_t>(scales[i]) >> shift;
    std::memcpy(out.data() + i * bytes, &stored, bytes);  // little-endian
  }
}

void encode_blocks(std::span<const float> values, const Blocks& blocks, std::span<const float> scales,
                   std::vector<std::byte>& out) {
  out.resize(values.size());
  auto* codes = reinterpret_cast<std::uint8_t*>(out.data());
  const std::size_t rows = blocks.cols == 0 ? 0 : values.size() / blocks.cols;
  each_run(rows, blocks, [&](std::size_t at, std::size_t count, std::size_t block) {
    encode(values.data() + at, count, scales[block], codes + at);
  });
}

}  // namespace moetrim::export_detail
