// Values of one byte or more, and two values per byte: runs of neighbours that share a scale.
#include <algorithm>
#include <array>
#include <cstring>

#include "decode.h"
#include "layout.h"
#include "moetrim/error.h"
#include "small_float.h"

namespace moetrim::quantised_detail {
namespace {

MOETRIM_VECTOR_CODE void f64_run(const std::byte* from, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<float>(load<double>(from, i));
}

MOETRIM_VECTOR_CODE void f16_run(const std::byte* from, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = f16(load<std::uint16_t>(from, i));
}

MOETRIM_VECTOR_CODE void bf16_run(const std::byte* from, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = bf16(load<std::uint16_t>(from, i));
}

void plain_rows(const StoredPart& values, std::size_t first, std::size_t count, float* out) {
  const std::byte* from = values.bytes + first * static_cast<std::size_t>(dtype_bits(values.dtype) / 8);
  switch (values.dtype) {
    case Dtype::f32: std::memcpy(out, from, count * sizeof(float)); return;
    case Dtype::f64: return f64_run(from, count, out);
    case Dtype::f16: return f16_run(from, count, out);
    case Dtype::bf16: return bf16_run(from, count, out);
    default: throw Error("plain values of a type that layout.cpp should have refused");
  }
}

MOETRIM_VECTOR_CODE void e4m3_run(const std::byte* from, std::size_t count, float scale, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = e4m3(load<std::uint8_t>(from, i)) * scale;
}

MOETRIM_VECTOR_CODE void e5m2_run(const std::byte* from, std::size_t count, float scale, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = e5m2(load<std::uint8_t>(from, i)) * scale;
}

MOETRIM_VECTOR_CODE void int8_run(const std::byte* from, std::size_t count, float zero, float scale, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = (static_cast<float>(load<std::int8_t>(from, i)) - zero) * scale;
}

/// Both values of every byte, low nibble first: one load and one store for two values.
struct Pair {
  float low, high;
};
constexpr std::array<Pair, 256> kPairs = [] {
  std::array<Pair, 256> pairs{};
  for (std::size_t byte = 0; byte < pairs.size(); ++byte) pairs[byte] = {kE2m1[byte & 15U], kE2m1[byte >> 4U]};
  return pairs;
}();

MOETRIM_VECTOR_CODE void fp4_run(const std::byte* from, std::size_t count, float scale, float* out) {
  for (std::size_t i = 0; i < count / 2; ++i) std::memcpy(out + 2 * i, &kPairs[load<std::uint8_t>(from, i)], sizeof(Pair));
  for (std::size_t i = 0; i < count; ++i) out[i] *= scale;
}

}  // namespace

void decode_bytes(const PackedWeight& weight, const Packing& packing, const Scales& scales, std::int64_t first,
                  std::int64_t count, float* out) {
  const StoredPart& values = *weight[Part::values];
  const auto cols = static_cast<std::size_t>(packing.cols);
  if (packing.kind == PackingKind::plain) {
    return plain_rows(values, static_cast<std::size_t>(first) * cols, static_cast<std::size_t>(count) * cols, out);
  }
  const auto group = static_cast<std::size_t>(packing.scale_cols);
  const auto bits = static_cast<std::size_t>(packing.bits);
  for (std::int64_t row = first; row < first + count; ++row, out += cols) {
    const std::byte* from = values.bytes + static_cast<std::size_t>(row) * (cols * bits / 8);
    std::size_t at = static_cast<std::size_t>(row / packing.scale_rows * scales.row_groups);
    for (std::size_t k = 0; k < cols; k += group, ++at) {
      const std::byte* run = from + k * bits / 8;
      const std::size_t length = std::min(group, cols - k);
      const float scale = scales.scale[at];
      switch (packing.kind) {
        case PackingKind::fp8:
          (values.dtype == Dtype::f8_e4m3 ? e4m3_run : e5m2_run)(run, length, scale, out + k);
          break;
        case PackingKind::int8:
          int8_run(run, length, scales.zero.empty() ? 0.0F : scales.zero[at], scale, out + k);
          break;
        default: fp4_run(run, length, scale, out + k);
      }
    }
  }
}

MOETRIM_VECTOR_CODE void round_to_bf16(const float* from, std::size_t count, std::uint16_t* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = to_bf16(from[i]);
}

}  // namespace moetrim::quantised_detail
