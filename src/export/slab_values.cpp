// The values of a slab of the source.

#include "export/slab_values.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "rewrite/slim_tensors.h"

namespace moetrim::export_detail {

namespace {

struct Range {
  std::uint64_t begin = 0, size = 0;
};

bool has_expert_axis(const Weight& weight) {
  const auto& axes = weight.rule->axes;
  return std::find(axes.begin(), axes.end(), Axis::E) != axes.end();
}

bool is_matrix(const Weight& weight) { return weight.rule->axes.size() == 2 || weight.fused(); }

/// One expert's share of a part, or all of it where one value serves all experts.
Range range_of(const Tensor& tensor, const Weight& weight, int expert) {
  const bool one_for_all = tensor.shape.empty() || tensor.shape == std::vector<std::int64_t>{1};
  if (!has_expert_axis(weight) || one_for_all) return {0, tensor.size};
  const auto& axes = weight.rule->axes;
  const auto axis = static_cast<std::size_t>(std::find(axes.begin(), axes.end(), Axis::E) - axes.begin());
  const std::uint64_t size = tensor.size / static_cast<std::uint64_t>(tensor.shape.at(axis));
  return {size * static_cast<std::uint64_t>(expert), size};
}

/// fp32 whose last bit says whether anything was cut off, so that rounding it once more is rounding the fp64 value.
std::uint32_t to_odd(double value) {
  const auto near = static_cast<float>(value);
  const auto bits = std::bit_cast<std::uint32_t>(near);
  if (static_cast<double>(near) == value || !std::isfinite(value) || (bits & 1U) != 0) return bits;
  if (std::isinf(near)) return bits - 1;  // the largest finite number, which is odd
  const bool outwards = std::abs(static_cast<double>(near)) < std::abs(value);
  if (outwards) return bits + 1;
  return bits == 0 || bits == 0x80000000U ? (std::signbit(value) ? 0x80000001U : 1U) : bits - 1;
}

std::uint16_t to_bf16(double value) {
  if (std::isnan(value)) return 0x7FC0;
  const std::uint32_t bits = to_odd(value);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

std::uint16_t to_f16(double value) {
  if (std::isnan(value)) return 0x7E00;
  const std::uint32_t bits = to_odd(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16U & 0x8000U);
  const std::uint32_t size = bits & 0x7FFFFFFFU;
  constexpr std::uint32_t kLeastNormal = 0x38800000, kInfinity = 0x47800000;  // 2^-14, 2^16
  if (size >= kInfinity) return static_cast<std::uint16_t>(sign | 0x7C00U);
  if (size >= kLeastNormal) {
    return static_cast<std::uint16_t>(sign | ((size + 0xFFFU + ((size >> 13U) & 1U) - 0x38000000U) >> 13U));
  }
  // Steps of 2^-24: nearbyint rounds ties to even, on a value that is exact.
  const double steps = std::abs(static_cast<double>(value)) * 0x1p24;
  return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(steps)));
}

template <class Stored, class Round>
void store(std::span<const double> values, std::vector<std::byte>& out, const Round& round) {
  out.resize(values.size() * sizeof(Stored));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Stored stored = round(values[i]);
    std::memcpy(out.data() + i * sizeof(Stored), &stored, sizeof stored);
  }
}

double largest(Dtype dtype) {
  switch (dtype) {
    case Dtype::f16: return 65520;  // from here on a value rounds to infinity
    case Dtype::bf16: return 0x1.FFp127;
    default: return 0x1.FFFFFFp127;
  }
}

}  // namespace

const TensorPlace& place_of(const Model& model, const Tensor& tensor) {
  return model.places.at(static_cast<std::size_t>(&tensor - model.checkpoint->tensors().data()));
}

const Weight& weight_of(const Model& model, const TensorPlace& place, int expert) {
  TensorPlace other = place;
  if (place.expert >= 0 && expert >= 0) other.expert = expert;
  return weight_at(model, other);
}

std::vector<std::int64_t> slab_shape(const Model& model, const Weight& weight) {
  if (weight.packed() && is_matrix(weight)) {
    const Packing packing = stored_matrix(model, weight).packing;
    return {packing.rows, packing.cols};
  }
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < weight.rule->axes.size(); ++i) {
    if (weight.rule->axes[i] != Axis::E) out.push_back(weight.values()->shape.at(i));
  }
  return out;
}

std::uint64_t slab_elements(const Model& model, const Weight& weight) {
  const auto shape = slab_shape(model, weight);
  return std::accumulate(shape.begin(), shape.end(), std::uint64_t{1},
                         [](std::uint64_t product, std::int64_t n) { return product * static_cast<std::uint64_t>(n); });
}

std::optional<AtomRows> atom_rows_of(const Model& model, const Weight& weight) {
  const Role role = weight.rule->role;
  if (where_of(role) != Where::experts || role == Role::fused_down_bias) return std::nullopt;
  if (role == Role::fused_gate_up_bias) return bias_rows(model);
  return AtomLayout(model, weight).value_rows();
}

void SlabReader::read_parts(const Weight& weight, int expert, PackedWeight& parts) {
  std::uint64_t bytes = 0;
  const auto each = [&](const auto& act) {
    for (std::size_t part = 0; part < kPartCount; ++part) {
      const Tensor* tensor = weight.parts[part];
      if (tensor != nullptr && static_cast<Part>(part) != Part::input_scale) {
        act(static_cast<Part>(part), *tensor, range_of(*tensor, weight, expert));
      }
    }
  };
  each([&](Part, const Tensor&, const Range& range) { bytes += range.size; });
  raw_.resize(static_cast<std::size_t>(bytes));
  bytes = 0;
  each([&](Part part, const Tensor& tensor, const Range& range) {
    const std::span room = std::span(raw_).subspan(static_cast<std::size_t>(bytes), static_cast<std::size_t>(range.size));
    source_.read(tensor, range.begin, room);
    parts[part]->bytes = room.data();
    bytes += range.size;
  });
}

void SlabReader::read(const Weight& weight, int expert, std::vector<float>& values) {
  const auto count = static_cast<std::int64_t>(slab_elements(model_, weight));
  values.resize(static_cast<std::size_t>(count));
  if (weight.packed() && is_matrix(weight)) {
    StoredMatrix matrix = stored_matrix(model_, weight);
    read_parts(weight, expert, matrix.parts);
    return dequantise(matrix.parts, matrix.packing, values);
  }
  const Tensor& tensor = *weight.values();
  const Range range = range_of(tensor, weight, expert);
  raw_.resize(static_cast<std::size_t>(range.size));
  source_.read(tensor, range.begin, raw_);
  PackedWeight plain;
  plain[Part::values] = StoredPart{tensor.name, tensor.dtype, {1, count}, raw_.data()};
  dequantise(plain, {.kind = PackingKind::plain, .rows = 1, .cols = count, .bits = dtype_bits(tensor.dtype)}, values);
}

void store_values(std::span<const double> values, Dtype dtype, std::string_view tensor, std::vector<std::byte>& out) {
  const double limit = largest(dtype);
  const auto too_large = [&](double value) { return std::abs(value) >= limit && std::isfinite(value); };
  if (const auto found = std::find_if(values.begin(), values.end(), too_large); found != values.end()) {
    throw InvalidInput(fmt::format("tensor {}: the plan makes a value of {:.3g}, which {} cannot hold; check the plan's factors", tensor,
                                   *found, dtype_name(dtype)));
  }
  if (dtype == Dtype::bf16) return store<std::uint16_t>(values, out, to_bf16);
  if (dtype == Dtype::f16) return store<std::uint16_t>(values, out, to_f16);
  store<float>(values, out, [](double value) { return static_cast<float>(value); });
}

}  // namespace moetrim::export_detail
