// Reads scales and zeros, whatever their type and order, and refuses numbers that cannot be meant.
#include "scales.h"

#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "layout.h"
#include "small_float.h"

namespace moetrim::quantised_detail {
namespace {

std::size_t element_count(const StoredPart& part) {
  std::size_t count = 1;
  for (const std::int64_t extent : part.shape) count *= static_cast<std::size_t>(extent);
  return count;
}

template <class Convert>
std::vector<float> converted(const StoredPart& part, Convert convert) {
  std::vector<float> out(element_count(part));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = convert(part.bytes, i);
  return out;
}

std::vector<float> as_floats(const StoredPart& part) {
  switch (part.dtype) {
    case Dtype::f32: return converted(part, [](auto* at, auto i) { return load<float>(at, i); });
    case Dtype::f16: return converted(part, [](auto* at, auto i) { return f16(load<std::uint16_t>(at, i)); });
    case Dtype::bf16: return converted(part, [](auto* at, auto i) { return bf16(load<std::uint16_t>(at, i)); });
    case Dtype::f8_e4m3: return converted(part, [](auto* at, auto i) { return e4m3(load<std::uint8_t>(at, i)); });
    case Dtype::f8_e8m0:
    case Dtype::u8: return converted(part, [](auto* at, auto i) { return e8m0(load<std::uint8_t>(at, i)); });
    default: fail(part, "is no scale");
  }
}

std::vector<float> finite_floats(const StoredPart& part) {
  std::vector<float> out = as_floats(part);
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!std::isfinite(out[i])) {
      fail(part, fmt::format("number {} of this scale is {}; the file is damaged, download it again", i, out[i]));
    }
  }
  return out;
}

/// [rows, cols] from [cols, rows].
std::vector<float> transposed(const std::vector<float>& from, std::size_t rows, std::size_t cols) {
  std::vector<float> out(from.size());
  for (std::size_t c = 0; c < cols; ++c) {
    for (std::size_t r = 0; r < rows; ++r) out[r * cols + c] = from[c * rows + r];
  }
  return out;
}

/// nvfp4: one number for both scales, as the references make it.
void apply_global_scale(const StoredPart& global, std::vector<float>& scale) {
  const float by = finite_floats(global).front();
  const bool divides = global.name.ends_with("weight_global_scale");
  if (divides && by == 0) fail(global, "is 0, and values are divided by it; the file is damaged, download it again");
  for (float& one : scale) one = divides ? one / by : one * by;
}

/// Code `index` of a stream of words that are `stride` apart, low bits first.
std::uint32_t code_at(const std::byte* words, std::size_t first, std::size_t stride, std::size_t index, int bits) {
  const auto width = static_cast<std::size_t>(bits);
  const std::size_t word = index * width / 32;
  const std::size_t shift = index * width % 32;
  std::uint64_t two = load<std::uint32_t>(words, first + word * stride);
  if (shift + width > 32) two |= std::uint64_t{load<std::uint32_t>(words, first + (word + 1) * stride)} << 32U;
  return static_cast<std::uint32_t>(two >> shift) & ((1U << width) - 1U);
}

/// gptq: zeros [G, words along N]. Version 1 stored them less 1.
std::vector<float> gptq_zeros(const StoredPart& part, const Packing& packing) {
  const auto groups = static_cast<std::size_t>(part.shape[0]);
  const auto words = static_cast<std::size_t>(part.shape[1]);
  const auto rows = static_cast<std::size_t>(packing.rows);
  const std::uint32_t mask = (1U << packing.bits) - 1U;
  std::vector<std::uint32_t> stored(groups * words);
  std::memcpy(stored.data(), part.bytes, stored.size() * sizeof(std::uint32_t));
  const bool by_word = packing.zeros_minus_one && packing.bits != 3;  // codes of 3 bits cross words
  if (by_word) {
    const std::uint32_t ones = 0xFFFFFFFFU / mask;  // 0x11111111 for 4 bits
    for (std::uint32_t& word : stored) word += ones;
  }
  const std::uint32_t plus = packing.zeros_minus_one && !by_word ? 1U : 0U;
  const auto* bytes = reinterpret_cast<const std::byte*>(stored.data());
  std::vector<float> out(rows * groups);
  for (std::size_t n = 0; n < rows; ++n) {
    for (std::size_t g = 0; g < groups; ++g) {
      out[n * groups + g] = static_cast<float>((code_at(bytes, g * words, 1, n, packing.bits) + plus) & mask);
    }
  }
  return out;
}

/// awq: zeros [G, N / 8], in the order of its values.
std::vector<float> awq_zeros(const StoredPart& part, const Packing& packing) {
  const auto groups = static_cast<std::size_t>(part.shape[0]);
  const auto words = static_cast<std::size_t>(part.shape[1]);
  std::vector<float> out(static_cast<std::size_t>(packing.rows) * groups);
  for (std::size_t g = 0; g < groups; ++g) {
    for (std::size_t word = 0; word < words; ++word) {
      const auto codes = load<std::uint32_t>(part.bytes, g * words + word);
      for (std::size_t i = 0; i < 8; ++i) {
        out[(word * 8 + kAwqOrder[i]) * groups + g] = static_cast<float>(codes >> (4 * i) & 15U);
      }
    }
  }
  return out;
}

/// packed_int: zeros [words along N, G]. Stored codes are 2^(bits-1) too large, zeros too, so that both cancel.
std::vector<float> packed_zeros(const PackedWeight& weight, const Packing& packing, std::size_t scales) {
  if (!weight.has(Part::zeros)) return std::vector<float>(scales, static_cast<float>(1U << (packing.bits - 1)));
  const StoredPart& part = *weight[Part::zeros];
  const auto groups = static_cast<std::size_t>(part.shape[1]);
  std::vector<float> out(static_cast<std::size_t>(packing.rows) * groups);
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<float>(code_at(part.bytes, i % groups, groups, i / groups, packing.bits));
  }
  return out;
}

std::vector<std::int32_t> read_order(const StoredPart& part, std::int64_t groups) {
  std::vector<std::int32_t> out(element_count(part));
  std::memcpy(out.data(), part.bytes, out.size() * sizeof(std::int32_t));
  for (std::size_t k = 0; k < out.size(); ++k) {
    if (out[k] < 0 || out[k] >= groups) {
      fail(part, fmt::format("column {} is in group {}, but there are groups 0 to {}", k, out[k], groups - 1));
    }
  }
  return out;
}

void check_shape_tensor(const StoredPart& part, const Packing& packing) {
  const auto at = [&](std::size_t i) -> std::int64_t {
    return part.dtype == Dtype::i64 ? load<std::int64_t>(part.bytes, i) : load<std::int32_t>(part.bytes, i);
  };
  const std::size_t count = element_count(part);
  if (at(count - 2) == packing.rows && at(count - 1) == packing.cols) return;
  fail(part, fmt::format("says that the weight is [{}, {}], but it must be [{}, {}]", at(count - 2), at(count - 1),
                         packing.rows, packing.cols));
}

}  // namespace

Scales read_scales(const PackedWeight& weight, const Packing& packing) {
  Scales out;
  if (packing.kind == PackingKind::plain) return out;
  out.row_groups = grid_cols(packing);
  out.scale = finite_floats(*weight[Part::scale]);
  if (packing.kind == PackingKind::nvfp4) apply_global_scale(*weight[Part::global_scale], out.scale);
  if (packing.kind == PackingKind::gptq || packing.kind == PackingKind::awq) {
    out.scale = transposed(out.scale, static_cast<std::size_t>(packing.rows), static_cast<std::size_t>(out.row_groups));
    const StoredPart& zeros = *weight[Part::zeros];
    out.zero = packing.kind == PackingKind::gptq ? gptq_zeros(zeros, packing) : awq_zeros(zeros, packing);
  }
  if (packing.kind == PackingKind::packed_int) out.zero = packed_zeros(weight, packing, out.scale.size());
  if (packing.kind == PackingKind::int8 && weight.has(Part::zeros)) {
    out.zero = converted(*weight[Part::zeros],
                         [](auto* at, auto i) { return static_cast<float>(load<std::int8_t>(at, i)); });
  }
  if (weight.has(Part::order)) out.order = read_order(*weight[Part::order], out.row_groups);
  if (weight.has(Part::shape)) check_shape_tensor(*weight[Part::shape], packing);
  return out;
}

}  // namespace moetrim::quantised_detail
