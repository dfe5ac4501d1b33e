// Small floating-point types as fp32, in a form that compilers turn into vector code.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

// nvcc compiles these functions for the device too.
#ifdef __CUDACC__
#define MOETRIM_ALSO_ON_DEVICE __host__ __device__
#else
#define MOETRIM_ALSO_ON_DEVICE
#endif

namespace moetrim::quantised_detail {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

/// A value of any alignment.
template <class T>
T load(const std::byte* from, std::size_t index) {
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof value);
  return value;
}

/// The number whose sign, `E` exponent bits and `M` mantissa bits are the low bits of `code`. Exact.
///
/// Shifting the code into place and raising the exponent does it for normal numbers. Those with exponent 0 get the
/// exponent of the smallest normal number, whose implied 1 is then subtracted; so no fp32 denormal occurs on the way,
/// which would be slow on many processors and flushed to 0 on some.
/// @tparam Ieee  exponents of ones mean infinity and NaN. Otherwise (E4M3FN) only all ones mean NaN.
template <int E, int M, bool Ieee>
MOETRIM_ALSO_ON_DEVICE inline float small_float(std::uint32_t code) {
  constexpr std::uint32_t kOne = 1U << 23U;  // one step of the fp32 exponent
  constexpr std::uint32_t kRaise = (127U - ((1U << (E - 1)) - 1U)) * kOne;
  constexpr std::int32_t kAllExponents = static_cast<std::int32_t>(((1U << E) - 1U) * kOne);
  constexpr std::int32_t kAllOnes = static_cast<std::int32_t>(((1U << (E + M)) - 1U) << (23 - M));
  const std::uint32_t magnitude = (code & ((1U << (E + M)) - 1U)) << (23 - M);
  const auto compared = static_cast<std::int32_t>(magnitude);  // signed comparisons are the ones that SSE2 has
  const std::uint32_t tiny = compared < static_cast<std::int32_t>(kOne) ? ~0U : 0U;
  const auto raised = std::bit_cast<float>(magnitude + kRaise + (tiny & kOne));
  const float value = raised - std::bit_cast<float>(tiny & (kRaise + kOne));
  const bool is_special = Ieee ? compared >= kAllExponents : compared == kAllOnes;
  const std::uint32_t special = is_special ? (Ieee ? 0x7F800000U : 0x7FC00000U) : 0U;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | special | (code >> (E + M) << 31U));
}

inline float e4m3(std::uint8_t code) { return small_float<4, 3, false>(code); }
inline float e5m2(std::uint8_t code) { return small_float<5, 2, true>(code); }
inline float f16(std::uint16_t code) { return small_float<5, 10, true>(code); }
inline float bf16(std::uint16_t code) { return std::bit_cast<float>(static_cast<std::uint32_t>(code) << 16U); }
/// 2^(code - 127); 255 is NaN.
inline float e8m0(std::uint8_t code) {
  if (code == 0xFF) return std::bit_cast<float>(0x7FC00000U);
  return std::bit_cast<float>(code == 0 ? 1U << 22U : static_cast<std::uint32_t>(code) << 23U);
}

/// The nearest bfloat16, ties to even. NaN stays NaN.
MOETRIM_ALSO_ON_DEVICE inline std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U;
  const std::uint32_t quiet = (bits >> 16U) | 0x40U;
  const bool nan = static_cast<std::int32_t>(bits & 0x7FFFFFFFU) > 0x7F800000;
  return static_cast<std::uint16_t>(nan ? quiet : rounded);
}

/// E2M1: sign, two exponent bits, one mantissa bit. Source: OCP Microscaling Formats 1.0, section 5.3.3.
inline constexpr float kE2m1[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                    -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};

/// awq: nibble i of a word, counted from the low end, is column kAwqOrder[i] of its eight. Source: AutoAWQ, gemm.
inline constexpr std::size_t kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

}  // namespace moetrim::quantised_detail
