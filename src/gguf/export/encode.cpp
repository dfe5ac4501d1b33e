// Numbers as ggml stores them. Source: ggml's quantize_row_q8_0_ref and its conversions of half precision.

#include "gguf/export/encode.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::gguf_detail {

namespace {

constexpr float kMostF16 = 65520.0F;               // from here on a value rounds to infinity
constexpr float kMostBf16 = 0x1.FFp127F;           // likewise
constexpr std::size_t kBlock = 32;                 // values of q8_0 that share a scale
constexpr std::size_t kBlockBytes = 2 + kBlock;

std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

/// Of a finite value below kMostF16.
std::uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16U & 0x8000U, size = bits & 0x7FFFFFFFU;
  constexpr std::uint32_t kLeastNormal = 0x38800000;  // 2^-14
  // Adding 0.5 leaves steps of 2^-24 in the last bits, rounded as fp32 rounds.
  const std::uint32_t half = size >= kLeastNormal
                                 ? (size + 0xFFFU + ((size >> 13U) & 1U) - 0x38000000U) >> 13U
                                 : std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5F) - 0x3F000000U;
  return static_cast<std::uint16_t>(sign | half);
}

template <class Convert>
void encode_halves(std::span<const float> values, std::vector<std::byte>& out, const Convert& convert) {
  out.resize(values.size() * 2);
  auto* halves = reinterpret_cast<std::uint16_t*>(out.data());
  for (std::size_t i = 0; i < values.size(); ++i) halves[i] = convert(values[i]);
}

/// As std::round does, of at most 127 and a little: halves go away from zero. Vectorises, which that does not.
std::int8_t rounded(float value) {
  const auto whole = static_cast<std::int32_t>(value);
  const float rest = value - static_cast<float>(whole);
  return static_cast<std::int8_t>(whole + (rest >= 0.5F ? 1 : 0) - (rest <= -0.5F ? 1 : 0));
}

void encode_q8_0(std::span<const float> values, std::vector<std::byte>& out) {
  out.resize(values.size() / kBlock * kBlockBytes);
  std::byte* to = out.data();
  for (std::size_t i = 0; i < values.size(); i += kBlock, to += kBlockBytes) {
    float most = 0;
    for (std::size_t k = 0; k < kBlock; ++k) most = std::max(most, std::abs(values[i + k]));
    const float scale = most / 127.0F, inverse = scale != 0 ? 1.0F / scale : 0.0F;
    const std::uint16_t half = to_f16(scale);
    std::memcpy(to, &half, sizeof half);
    for (std::size_t k = 0; k < kBlock; ++k) to[2 + k] = static_cast<std::byte>(rounded(values[i + k] * inverse));
  }
}

float largest(GgmlType type) {
  switch (type) {
    case GgmlType::f16: return kMostF16;
    case GgmlType::bf16: return kMostBf16;
    case GgmlType::q8_0: return 127.0F * kMostF16;
    default: return std::numeric_limits<float>::infinity();
  }
}

void check(std::span<const float> values, GgmlType type, std::string_view tensor) {
  const float most = largest(type);
  bool fits = true;
  for (const float value : values) fits &= std::abs(value) < most;  // false for NaN
  if (fits) return;
  const float wrong = *std::ranges::find_if(values, [&](float value) { return !(std::abs(value) < most); });
  if (!std::isfinite(wrong)) {
    throw InvalidInput(fmt::format("tensor {}: has a value that is {}; a checkpoint with such values cannot work, so repair "
                                   "it first", tensor, std::isnan(wrong) ? "no number (NaN)" : "infinite"));
  }
  throw InvalidInput(fmt::format("tensor {}: has the value {:g}, which {} cannot hold; use --dtype f32{}", tensor, wrong,
                                 ggml_layout(type).name, type == GgmlType::bf16 ? "" : " or bf16"));
}

}  // namespace

void encode(std::span<const float> values, GgmlType type, std::string_view tensor, std::vector<std::byte>& out) {
  check(values, type, tensor);
  switch (type) {
    case GgmlType::f16: return encode_halves(values, out, to_f16);
    case GgmlType::bf16: return encode_halves(values, out, to_bf16);
    case GgmlType::q8_0: return encode_q8_0(values, out);
    case GgmlType::f32:
      out.resize(values.size_bytes());
      std::memcpy(out.data(), values.data(), values.size_bytes());
      return;
    default: throw Error(fmt::format("tensor {}: values cannot be converted to {}", tensor, ggml_layout(type).name));
  }
}

}  // namespace moetrim::gguf_detail
