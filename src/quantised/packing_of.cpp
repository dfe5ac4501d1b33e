// Finds how a weight is packed: the type of its values says what it can be, shapes and config.json say the rest.
#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "layout.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

using namespace quantised_detail;

constexpr std::int64_t kMostExtent = std::int64_t{1} << 30;  // so that no product of two extents and bits overflows
constexpr std::int64_t kMxGroup = 32;                        // OCP Microscaling Formats 1.0
constexpr std::int64_t kNvfp4Group = 16;

/// A weight whose packing is sought.
struct Sought {
  const PackedWeight& weight;
  const Quantisation& config;
  std::int64_t rows;
  std::int64_t cols;

  const StoredPart& values() const { return *weight[Part::values]; }

  Packing result(PackingKind kind, int bits, std::int64_t scale_rows, std::int64_t scale_cols) const {
    return {.kind = kind, .rows = rows, .cols = cols, .bits = bits, .scale_rows = scale_rows, .scale_cols = scale_cols};
  }
};

/// One scale per matrix or per row, which need no word from config.json: {rows, cols} that share it.
std::optional<std::pair<std::int64_t, std::int64_t>> scale_without_groups(const Shape& scale, const Sought& weight) {
  if (scale.empty() || scale == Shape{1} || scale == Shape{1, 1}) return std::pair{weight.rows, weight.cols};
  if (scale == Shape{weight.rows} || scale == Shape{weight.rows, 1}) return std::pair{std::int64_t{1}, weight.cols};
  return std::nullopt;
}

/// Blocks and groups that config.json allows for values of a type, as {rows, cols} that share a scale.
std::vector<std::pair<std::int64_t, std::int64_t>> grids_of(const Quantisation& config, std::string_view type, int bits) {
  std::vector<std::pair<std::int64_t, std::int64_t>> out;
  if (config.block_rows > 0) out.emplace_back(config.block_rows, config.block_cols);
  for (const QuantisationGroup& group : config.groups) {
    if (group.type != type || group.bits != bits) continue;
    if (group.block_rows > 0) out.emplace_back(group.block_rows, group.block_cols);
    if (group.group_size > 0) out.emplace_back(1, group.group_size);
  }
  return out;
}

/// fp8 and int8: the scale's shape picks the grid among those of config.json.
Packing bytes_packing(const Sought& weight, PackingKind kind, std::string_view type) {
  const StoredPart& scale = need(weight.weight, Part::scale, kind);
  if (const auto whole = scale_without_groups(scale.shape, weight)) {
    return weight.result(kind, 8, whole->first, whole->second);
  }
  auto grids = grids_of(weight.config, type, 8);
  if (kind == PackingKind::fp8 && is_e8m0(scale)) grids.emplace_back(1, kMxGroup);
  for (const auto& [rows, cols] : grids) {
    if (rows == 1 && weight.cols % cols != 0) continue;  // groups must divide; blocks may end early
    if (scale.shape == Shape{ceil_divide(weight.rows, rows), ceil_divide(weight.cols, cols)}) {
      return weight.result(kind, 8, rows, cols);
    }
  }
  std::vector<std::string> texts;
  for (const auto& [rows, cols] : grids) texts.push_back(fmt::format("{}x{}", rows, cols));
  fail(scale, fmt::format("is no scale for values [{}, {}]: expected one number, one per row, or one per block; blocks "
                          "that {} names: {}",
                          weight.rows, weight.cols, weight.config.where,
                          texts.empty() ? "none" : fmt::format("{}", fmt::join(texts, ", "))));
}

/// Types of values with 4 bits in bytes look alike; the scale's type tells them apart.
Packing fp4_packing(const Sought& weight) {
  const StoredPart& scale = need(weight.weight, Part::scale, PackingKind::mxfp4);
  if (is_e8m0(scale)) return weight.result(PackingKind::mxfp4, 4, 1, kMxGroup);
  if (scale.dtype == Dtype::f8_e4m3) return weight.result(PackingKind::nvfp4, 4, 1, kNvfp4Group);
  fail(scale, fmt::format("expected type U8 or F8_E8M0 (mxfp4) or F8_E4M3 (nvfp4) beside '{}'", weight.values().name));
}

void expect_bits(const Sought& weight, int bits) {
  if (weight.config.bits == 0 || weight.config.varies || weight.config.bits == bits) return;
  fail(weight.values(), fmt::format("holds {} bits per value for [{}, {}], but {} says bits {}", bits, weight.rows,
                                    weight.cols, weight.config.where, weight.config.bits));
}

/// Group size from G = scales along K, which config.json must confirm.
std::int64_t group_size_of(const Sought& weight, const StoredPart& scale, std::int64_t groups) {
  const std::int64_t said = weight.config.group_size == -1 ? weight.cols : weight.config.group_size;
  if (groups < 1 || groups > weight.cols) fail(scale, fmt::format("expected from 1 to {} groups", weight.cols));
  if (said > 0 && ceil_divide(weight.cols, said) == groups) return std::min(said, weight.cols);
  if (said > 0 && !weight.config.varies) {
    fail(scale, fmt::format("has {} groups along {} columns, but {} says group_size {}", groups, weight.cols,
                            weight.config.where, weight.config.group_size));
  }
  if (weight.cols % groups != 0) fail(scale, fmt::format("{} groups do not divide {} columns", groups, weight.cols));
  return weight.cols / groups;
}

Packing gptq_packing(const Sought& weight) {
  const StoredPart& scale = need(weight.weight, Part::scale, PackingKind::gptq);
  const Shape& values = weight.values().shape;
  if (weight.cols % 32 != 0) fail(weight.values(), fmt::format("{} columns are not a multiple of 32", weight.cols));
  int bits = 0;
  for (const int candidate : {2, 3, 4, 8}) {
    if (values == Shape{words_for(weight.cols, candidate), weight.rows}) bits = candidate;
  }
  if (bits == 0) {
    fail(weight.values(),
         fmt::format("expected shape [{} · bits / 32, {}] with 2, 3, 4 or 8 bits", weight.cols, weight.rows));
  }
  expect_bits(weight, bits);
  if (scale.shape.size() != 2) fail(scale, fmt::format("expected shape [groups, {}]", weight.rows));
  Packing packing = weight.result(PackingKind::gptq, bits, 1, group_size_of(weight, scale, scale.shape[0]));
  packing.zeros_minus_one = weight.config.zeros_minus_one;
  return packing;
}

Packing awq_packing(const Sought& weight) {
  const StoredPart& scale = need(weight.weight, Part::scale, PackingKind::awq);
  expect_bits(weight, 4);
  if (scale.shape.size() != 2) fail(scale, fmt::format("expected shape [groups, {}]", weight.rows));
  return weight.result(PackingKind::awq, 4, 1, group_size_of(weight, scale, scale.shape[0]));
}

/// True when a group of config.json describes words of `bits` with this scale: {rows, cols} that share one.
bool describes(const QuantisationGroup& group, int bits, std::pair<std::int64_t, std::int64_t> scale, const Sought& weight) {
  if (group.type != "int" || group.bits != bits) return false;
  if (!group.symmetric && !weight.weight.has(Part::zeros)) return false;
  if (group.group_size > 0) return scale.first == 1 && scale.second == std::min(group.group_size, weight.cols);
  return scale.second == weight.cols;
}

Packing packed_int_packing(const Sought& weight) {
  const StoredPart& scale = need(weight.weight, Part::scale, PackingKind::packed_int);
  auto shared = scale_without_groups(scale.shape, weight);
  if (!shared && scale.shape.size() == 2 && scale.shape[1] > 0 && weight.cols % scale.shape[1] == 0) {
    shared = std::pair{std::int64_t{1}, weight.cols / scale.shape[1]};
  }
  if (!shared) {
    fail(scale, fmt::format("expected one number, [{0}, 1] or [{0}, groups] with groups that divide {1} columns",
                            weight.rows, weight.cols));
  }
  std::set<int> fitting;
  for (const int bits : {2, 4, 8}) {
    const bool fits = weight.values().shape == Shape{weight.rows, words_for(weight.cols, bits)};
    const bool said = std::ranges::any_of(
        weight.config.groups, [&](const QuantisationGroup& group) { return describes(group, bits, *shared, weight); });
    if (fits && said) fitting.insert(bits);
  }
  if (fitting.size() == 1) return weight.result(PackingKind::packed_int, *fitting.begin(), shared->first, shared->second);
  fail(weight.values(),
       fmt::format("{} for a weight [{}, {}] with scale '{}' in groups of {} by {}{}; see config_groups in {}",
                   fitting.empty() ? "no config group with 2, 4 or 8 bits fits" : "more than one config group fits",
                   weight.rows, weight.cols, scale.name, shared->first, shared->second,
                   weight.weight.has(Part::zeros) ? "" : " and no zeros", weight.config.where));
}

/// Words of 32 bits look alike too, and square matrices would fit more than one order; the method says which it is.
Packing words_packing(const Sought& weight) {
  const std::string& method = weight.config.method;
  if (method == "gptq") return gptq_packing(weight);
  if (method == "awq") return awq_packing(weight);
  if (method == "compressed-tensors") return packed_int_packing(weight);
  fail(weight.values(), fmt::format("values in words are of gptq, awq or compressed-tensors, but the quant_method of {} is "
                                    "{}",
                                    weight.config.where, method.empty() ? "not there" : in_quotes(method)));
}

Packing find_packing(const Sought& weight) {
  const StoredPart& values = weight.values();
  switch (values.dtype) {
    case Dtype::f64:
    case Dtype::f32:
    case Dtype::f16:
    case Dtype::bf16: return weight.result(PackingKind::plain, dtype_bits(values.dtype), 0, 0);
    case Dtype::f8_e4m3:
    case Dtype::f8_e5m2: return bytes_packing(weight, PackingKind::fp8, "float");
    case Dtype::i8:
      if (values.shape == Shape{weight.rows, weight.cols}) return bytes_packing(weight, PackingKind::int8, "int");
      return fp4_packing(weight);
    case Dtype::u8: return fp4_packing(weight);
    case Dtype::i32: return words_packing(weight);
    default: fail(values, "values of this type cannot be computed; convert the model to F8_E4M3 or BF16 first");
  }
}

void expect_known(const Quantisation& quantisation) {
  const std::string& method = quantisation.method;
  const auto known = known_quantisation_methods();
  if (!method.empty() && std::ranges::find(known, method) == known.end()) {
    throw InvalidInput(fmt::format("{}: quant_method {} is not known, so that values cannot be computed; known are {}{}",
                                   quantisation.where, in_quotes(method), fmt::join(known, ", "),
                                   did_you_mean(method, known)));
  }
  if (!quantisation.obstacle.empty()) {
    throw InvalidInput(fmt::format("{}: {}: {}", quantisation.where, method, quantisation.obstacle));
  }
}

}  // namespace

Packing packing_of(const PackedWeight& weight, const Quantisation& quantisation, std::int64_t rows, std::int64_t cols) {
  expect_known(quantisation);
  const StoredPart& values = need(weight, Part::values, PackingKind::plain);
  if (rows < 1 || cols < 1 || rows > kMostExtent || cols > kMostExtent) {
    fail(values, fmt::format("a weight [{}, {}] is empty or too large; expected from 1 to {} rows and columns", rows, cols,
                             kMostExtent));
  }
  const Packing packing = find_packing({weight, quantisation, rows, cols});
  check_layout(weight, packing);
  return packing;
}

std::string_view packing_name(PackingKind kind) {
  constexpr std::array<std::string_view, 8> kNames{"plain", "fp8",  "int8", "mxfp4",
                                                   "nvfp4", "gptq", "awq",  "packed_int"};
  return kNames.at(static_cast<std::size_t>(kind));
}

}  // namespace moetrim
