// Values of one byte or more, and two values per byte: runs of neighbours that share a scale.
#include <algorithm>

#include "decode.h"
#include "layout.h"
#include "moetrim/error.h"
#include "small_float.h"

namespace moetrim::quantised_detail {
namespace {

template <class Code, float (*Convert)(Code)>
void plain_run(const std::byte* from, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = Convert(load<Code>(from, i));
}

float same(float value) { return value; }
float narrowed(double value) { return static_cast<float>(value); }

void plain_rows(const StoredPart& values, std::size_t first, std::size_t count, float* out) {
  const std::byte* from = values.bytes + first * static_cast<std::size_t>(dtype_bits(values.dtype) / 8);
  switch (values.dtype) {
    case Dtype::f32: return plain_run<float, same>(from, count, out);
    case Dtype::f64: return plain_run<double, narrowed>(from, count, out);
    case Dtype::f16: return plain_run<std::uint16_t, f16>(from, count, out);
    case Dtype::bf16: return plain_run<std::uint16_t, bf16>(from, count, out);
    default: throw Error("plain values of a type that layout.cpp should have refused");
  }
}

template <float (*Convert)(std::uint8_t)>
void fp8_run(const std::byte* from, std::size_t count, float scale, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = Convert(load<std::uint8_t>(from, i)) * scale;
}

void int8_run(const std::byte* from, std::size_t count, float zero, float scale, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = (static_cast<float>(load<std::int8_t>(from, i)) - zero) * scale;
}

/// Sixteen products serve the whole run: with codes of four bits there are no others.
void fp4_run(const std::byte* from, std::size_t count, float scale, float* out) {
  float products[16];
  for (std::size_t code = 0; code < 16; ++code) products[code] = kE2m1[code] * scale;
  for (std::size_t i = 0; i < count / 2; ++i) {
    const auto pair = load<std::uint8_t>(from, i);
    out[2 * i] = products[pair & 15U];
    out[2 * i + 1] = products[pair >> 4U];
  }
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
          values.dtype == Dtype::f8_e4m3 ? fp8_run<e4m3>(run, length, scale, out + k)
                                         : fp8_run<e5m2>(run, length, scale, out + k);
          break;
        case PackingKind::int8:
          int8_run(run, length, scales.zero.empty() ? 0.0F : scales.zero[at], scale, out + k);
          break;
        default: fp4_run(run, length, scale, out + k);
      }
    }
  }
}

void round_to_bf16(const float* from, std::size_t count, std::uint16_t* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = to_bf16(from[i]);
}

}  // namespace moetrim::quantised_detail
