// What becomes of the tensors of experts that lose atomic experts, and of a shared expert that must follow.

#include "rewrite/slim_tensors.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include <fmt/format.h>

#include "family/name_pattern.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

using Shape = std::vector<std::int64_t>;

bool is_shared_expert(Role role) {
  return role == Role::shared_gate || role == Role::shared_up || role == Role::shared_down;
}

/// One matrix of a tensor: all of it, or an expert's share of a fused one.
struct Slab {
  const Tensor& tensor;
  bool fused;

  Shape shape() const { return {tensor.shape.begin() + (fused ? 1 : 0), tensor.shape.end()}; }
  std::uint64_t bytes() const { return fused ? tensor.size / static_cast<std::uint64_t>(tensor.shape.at(0)) : tensor.size; }
  /// Bytes of one entry of a dimension: of all dimensions after it.
  std::uint64_t inner_bytes(std::size_t dim) const {
    const Shape all = shape();
    const std::int64_t elements = std::accumulate(all.begin() + static_cast<std::ptrdiff_t>(dim) + 1, all.end(),
                                                  std::int64_t{1}, std::multiplies<>());
    const std::int64_t bits = elements * dtype_bits(tensor.dtype);
    if (bits % 8 != 0) throw InvalidInput(fmt::format("tensor {}: an atomic expert does not end on a byte", tensor.name));
    return static_cast<std::uint64_t>(bits / 8);
  }
  Piece piece(int expert, AtomCut cut = {}, std::shared_ptr<const SlabRecipe> recipe = {}) const {
    const std::uint64_t begin = fused ? bytes() * static_cast<std::uint64_t>(expert) : 0;
    if (cut.atoms && bytes() % cut.row_bytes != 0) {
      throw InvalidInput(fmt::format("tensor {}: {} bytes of an expert are not rows of {}", tensor.name, bytes(),
                                     cut.row_bytes));
    }
    return {&tensor, begin, begin + bytes(), std::move(cut), std::move(recipe)};
  }
};

template <class Number>
std::string bytes_of(const std::vector<std::int64_t>& values) {
  std::string out(values.size() * sizeof(Number), '\0');
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto number = static_cast<Number>(values[i]);
    std::memcpy(out.data() + i * sizeof(Number), &number, sizeof number);
  }
  return out;
}

std::string literal_of(Dtype dtype, const std::vector<std::int64_t>& values) {
  return dtype == Dtype::i64 ? bytes_of<std::int64_t>(values) : bytes_of<std::int32_t>(values);
}

/// [N, K] of a packed weight, or [E, N, K], with another length along the atomic experts.
OutputTensor shape_tensor(const Tensor& tensor, const AtomLayout& layout, std::int64_t experts, std::int64_t length) {
  const Packing& packing = layout.matrix().packing;
  std::vector<std::int64_t> values{layout.along_rows() ? length : packing.rows, layout.along_rows() ? packing.cols : length};
  if (tensor.shape == Shape{3}) values.insert(values.begin(), experts);
  OutputTensor out{tensor, {{&tensor, 0, tensor.size}}};
  out.literal = literal_of(tensor.dtype, values);
  return out;
}

/// The group of every column. Only the order of the columns themselves can be cut: where GPTQ sorted them by activation, the
/// columns of a group lie apart.
OutputTensor order_tensor(const Model& model, const Tensor& tensor, const AtomLayout& layout, std::int64_t length) {
  const std::int64_t group = layout.matrix().packing.scale_cols;
  const auto sorted = [&](std::int64_t columns) {
    std::vector<std::int64_t> groups(static_cast<std::size_t>(columns));
    for (std::int64_t k = 0; k < columns; ++k) groups[static_cast<std::size_t>(k)] = k / group;
    return bytes_of<std::int32_t>(groups);
  };
  const auto stored = model.checkpoint->read(tensor);
  const std::string expected = sorted(layout.matrix().packing.cols);
  if (stored.size() != expected.size() || std::memcmp(stored.data(), expected.data(), expected.size()) != 0) {
    throw InvalidInput(fmt::format("tensor {}: the columns are ordered by activation (desc_act), so that neighbouring "
                                   "atomic experts do not share a group and cannot be cut out; plan to drop whole experts "
                                   "instead", tensor.name));
  }
  OutputTensor out{tensor, {{&tensor, 0, tensor.size}}};
  out.spec.shape = {length};
  out.literal = sorted(length);
  return out;
}

[[noreturn]] void refuse_borders(const Tensor& tensor, const AtomLayout& layout, int expert) {
  const auto block = layout.block();
  const std::string_view kind = packing_name(layout.matrix().packing.kind);
  if (block == 0) {
    throw InvalidInput(fmt::format("tensor {}: gate and up share a block of {} codes, so that no atomic expert can be cut "
                                   "out of it; plan to drop whole experts instead", tensor.name, kind));
  }
  throw InvalidInput(fmt::format("tensor {}: {} neighbouring atomic experts share their {} codes or scales, and the plan "
                                 "parts some of expert {}; make the plan with --atom-blocks {} or a multiple of it",
                                 tensor.name, block, kind, expert, block));
}

std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Holds a weight as it will be stored against its format, which does not have every width: what passes can be loaded.
/// @param length_of  of a part's dimension with the atomic experts; nothing for a part without
template <class LengthOf>
void check_format(const Model& model, const Tensor& tensor, const AtomLayout& layout, std::int64_t width,
                  const LengthOf& length_of) {
  const Packing& packing = layout.matrix().packing;
  if (packing.kind == PackingKind::plain) return;
  PackedWeight after = layout.matrix().parts;
  for (std::size_t i = 0; i < kPartCount; ++i) {
    const auto part = static_cast<Part>(i);
    if (!after.has(part)) continue;
    if (const auto length = length_of(part)) after[part]->shape.at(length->first) = length->second;
  }
  try {
    const bool rows = layout.along_rows();
    packing_of(after, model.quantisation, rows ? width : packing.rows, rows ? packing.cols : width);
  } catch (const InvalidInput& problem) {
    throw InvalidInput(fmt::format("tensor {}: cannot be stored with {} atomic experts: {}; keep another number of them",
                                   tensor.name, width, problem.what()));
  }
}

/// A scale of one block says nothing of how long a block may be; config.json does.
std::optional<AtomRows> rows_to_grow(const Model& model, const AtomLayout& layout, Part part) {
  const Quantisation& config = model.quantisation;
  const std::int64_t block = layout.along_rows() ? config.block_rows : config.block_cols;
  const auto rows = layout.rows(part);
  if (rows || part != Part::scale || block == 0 || layout.matrix().parts[part]->shape.size() != 2) return rows;
  return AtomRows{layout.along_rows() ? std::size_t{0} : std::size_t{1}, model.shared_width, block};
}

std::string_view half_name(Half half, bool bias) {
  if (half == Half::gate) return bias ? "gate_bias" : "gate";
  return bias ? "up_bias" : "up";
}

}  // namespace

const Weight& weight_at(const Model& model, const TensorPlace& place) {
  const auto role = static_cast<std::size_t>(place.rule->role);
  if (place.layer < 0) return model.global[role];
  const LayerTensors& layer = model.layer.at(static_cast<std::size_t>(place.layer));
  if (place.expert < 0) return layer.by_role[role];
  return layer.experts.at(static_cast<std::size_t>(place.expert))[role - static_cast<std::size_t>(Role::expert_gate)];
}

std::string slim_name(std::string_view tensor, std::string_view part, int expert) {
  constexpr std::string_view kExperts = ".experts";
  const auto at = tensor.find(std::string(kExperts) + ".");
  if (at != std::string_view::npos) return fmt::format("{}{}.slim_{}.{}", tensor.substr(0, at), kExperts, part, expert);
  // Granite: "….block_sparse_moe.input_linear.weight".
  std::string_view block = tensor;
  for (int i = 0; i < 2; ++i) block = block.substr(0, block.rfind('.'));
  return fmt::format("{}{}.slim_{}.{}", block, kExperts, part, expert);
}

bool SlimTensors::append(const Tensor& tensor, const TensorPlace& place, std::vector<OutputTensor>& out) const {
  if (slimming_.form == WidthForm::whole || place.rule == nullptr || place.layer < 0) return false;
  const Role role = place.rule->role;
  if (slimming_.form == WidthForm::config && slimming_.shared_width != model_.shared_width && is_shared_expert(role)) {
    auto grown = widened(tensor, place);
    if (grown) out.push_back(std::move(*grown));
    return grown.has_value();
  }
  if (where_of(role) != Where::experts || !numbers_.covers(place.layer)) return false;
  const std::vector<Matrix> kept = matrices(tensor, place);
  if (kept.empty()) return true;
  if (slimming_.form == WidthForm::listed) {
    append_listed(tensor, place, kept, out);
    return true;
  }
  if (role == Role::fused_down_bias) return false;
  if (place.expert < 0) {
    OutputTensor slim = narrowed(tensor, place, kept);
    if (slim.pieces.empty()) return false;
    out.push_back(std::move(slim));
    return true;
  }
  for (const Matrix& matrix : kept) {
    OutputTensor slim = narrowed(tensor, place, {matrix});
    slim.spec.name = with_expert(place.rule->name, tensor.name, matrix.slot);
    out.push_back(std::move(slim));
  }
  return true;
}

std::vector<SlimTensors::Matrix> SlimTensors::matrices(const Tensor& tensor, const TensorPlace& place) const {
  const auto& atoms = numbers_.atoms(place.layer);
  const auto all = std::make_shared<const AtomRanges>(AtomRanges{{0, static_cast<int>(model_.expert_width)}});
  const auto& keep = numbers_.keep(place.layer);
  std::vector<Matrix> out;
  for (std::size_t i = 0; i < keep.size(); ++i) {
    if (place.expert >= 0 && place.expert != keep[i]) continue;
    const auto slot = static_cast<int>(i);
    out.push_back({keep[i], slot, atoms.empty() ? all : atoms[i], edited_.recipe(tensor, place, slot, keep[i])});
  }
  return out;
}

OutputTensor SlimTensors::narrowed(const Tensor& tensor, const TensorPlace& place, const std::vector<Matrix>& kept) const {
  if (place.rule->role == Role::fused_gate_up_bias) return cut(tensor, place, bias_rows(model_), kept);
  const AtomLayout layout(model_, weight_at(model_, place));
  const auto fits = [&](const Matrix& matrix) { return layout.fits(*matrix.atoms); };
  const auto parted = std::find_if_not(kept.begin(), kept.end(), fits);
  const bool edited = std::any_of(kept.begin(), kept.end(), [](const Matrix& matrix) { return matrix.recipe != nullptr; });
  const bool packed = layout.matrix().packing.kind != PackingKind::plain;
  if (parted != kept.end() || (edited && packed)) {
    if (!can_be_quantised_again(layout.matrix())) refuse_borders(tensor, layout, parted->expert);
    if (place.part == Part::values || place.part == Part::scale) return quantised_again(tensor, place, layout, kept);
  }
  const std::int64_t length = layout.value_rows().length(kept.front().atoms);
  if (place.part == Part::values) {
    check_format(model_, tensor, layout, length, [&](Part part) -> std::optional<std::pair<std::size_t, std::int64_t>> {
      if (const auto rows = layout.rows(part)) return std::pair{rows->dim, rows->length(kept.front().atoms)};
      return std::nullopt;
    });
  }
  if (place.part == Part::shape) return shape_tensor(tensor, layout, static_cast<std::int64_t>(kept.size()), length);
  const auto rows = layout.rows(place.part);
  if (place.part == Part::order && rows) return order_tensor(model_, tensor, layout, length);
  if (rows) return cut(tensor, place, *rows, kept);
  OutputTensor out{tensor, {}};
  if (place.expert >= 0) out.pieces.push_back({&tensor, 0, tensor.size});
  return out;
}

OutputTensor SlimTensors::cut(const Tensor& tensor, const TensorPlace& place, const AtomRows& rows,
                              const std::vector<Matrix>& kept) const {
  const Slab slab{tensor, place.expert < 0};
  OutputTensor out{tensor, {}};
  for (const Matrix& matrix : kept) {
    out.pieces.push_back(slab.piece(matrix.expert, rows.cut(matrix.atoms, slab.inner_bytes(rows.dim)), matrix.recipe));
  }
  if (slab.fused) out.spec.shape[0] = static_cast<std::int64_t>(kept.size());
  out.spec.shape[rows.dim + (slab.fused ? 1 : 0)] = rows.length(kept.front().atoms);
  return out;
}

OutputTensor SlimTensors::quantised_again(const Tensor& tensor, const TensorPlace& place, const AtomLayout& layout,
                                          const std::vector<Matrix>& kept) const {
  const bool fused = place.expert < 0;
  const Packing& packing = layout.matrix().packing;
  const AtomRows values = layout.value_rows();
  const std::int64_t length = values.length(kept.front().atoms);
  Shape shape{layout.along_rows() ? length : packing.rows, layout.along_rows() ? packing.cols : length};
  auto computation = std::make_shared<Computation>();
  computation->weight = &weight_at(model_, place);
  computation->result = place.part == Part::values ? Computation::Result::fp8 : Computation::Result::fp8_scale;
  if (place.part == Part::scale) {
    shape = {ceil_divide(shape[0], packing.scale_rows), ceil_divide(shape[1], packing.scale_cols)};
  }
  OutputTensor out{tensor, {}};
  const Slab slab{tensor, fused};
  for (const Matrix& matrix : kept) {
    out.pieces.push_back(slab.piece(matrix.expert, {}, matrix.recipe));
    computation->atoms.push_back(matrix.atoms);
    if (fused) computation->experts.push_back(matrix.expert);
  }
  if (fused) shape.insert(shape.begin(), static_cast<std::int64_t>(kept.size()));
  out.spec.shape = std::move(shape);
  out.computation = std::move(computation);
  return out;
}

void SlimTensors::append_factors(const Tensor& tensor, const TensorPlace& place, const Matrix& matrix, std::string_view part,
                                 std::vector<OutputTensor>& out) const {
  using Kind = FactorPart::Kind;
  const bool down = part == "down", up = part == "up";
  const std::int64_t outputs = down ? model_.hidden : model_.expert_width, inputs = down ? model_.expert_width : model_.hidden;
  const std::int64_t rank = matrix.recipe->low_rank->rank;
  FactorPart factor{.layer = place.layer, .slot = matrix.slot, .matrix = down ? 2 : up ? 1 : 0};
  factor.place = up && place.rule->role == Role::fused_gate_up ? 1 : 0;
  const auto add = [&](Kind kind, std::string_view name, Dtype dtype, Shape shape) {
    OutputTensor one{{slim_name(tensor.name, fmt::format("{}_{}", part, name), matrix.slot), dtype, std::move(shape)}, {}};
    one.pieces.push_back(Slab{tensor, place.expert < 0}.piece(matrix.expert, {}, matrix.recipe));
    factor.kind = kind;
    one.factor = factor;
    out.push_back(std::move(one));
  };
  add(Kind::left, "left", tensor.dtype, {outputs, rank});
  add(Kind::right, "right", tensor.dtype, {rank, inputs});
  add(Kind::rows, "rows", tensor.dtype, {0, inputs});
  add(Kind::row_ids, "row_ids", Dtype::i32, {0});
}

void SlimTensors::append_listed(const Tensor& tensor, const TensorPlace& place, const std::vector<Matrix>& kept,
                                std::vector<OutputTensor>& out) const {
  const Role role = place.rule->role;
  const bool fused = place.expert < 0;
  const Slab slab{tensor, fused};
  const auto add = [&](std::string_view part, const Matrix& matrix, std::optional<std::size_t> dim, AtomCut cut) {
    OutputTensor one{{slim_name(tensor.name, part, matrix.slot), tensor.dtype, slab.shape()}, {}};
    if (dim) one.spec.shape[*dim] = atom_count(*matrix.atoms);
    one.pieces.push_back(slab.piece(matrix.expert, std::move(cut), matrix.recipe));
    out.push_back(std::move(one));
  };
  for (const Matrix& matrix : kept) {
    if (role == Role::fused_down_bias) {
      add("down_bias", matrix, std::nullopt, {});
      continue;
    }
    const bool bias = role == Role::fused_gate_up_bias;
    const bool down = role == Role::expert_down || role == Role::fused_down;
    const std::string_view single = down ? "down" : half_name(role == Role::expert_gate ? Half::gate : Half::up, false);
    if (matrix.recipe && matrix.recipe->low_rank && matrix.recipe->low_rank->form == LowRankForm::factored) {
      if (role != Role::fused_gate_up) append_factors(tensor, place, matrix, single, out);
      else for (const Half half : {Half::gate, Half::up}) append_factors(tensor, place, matrix, half_name(half, false), out);
      continue;
    }
    const AtomRows rows = bias ? bias_rows(model_) : AtomLayout(model_, weight_at(model_, place)).value_rows();
    const AtomCut cut = rows.cut(matrix.atoms, slab.inner_bytes(rows.dim));
    if (role == Role::fused_gate_up || bias) {
      for (const Half half : {Half::gate, Half::up}) add(half_name(half, bias), matrix, rows.dim, half_of(rows, cut, half));
    } else {
      add(single, matrix, rows.dim, cut);
    }
  }
}

std::optional<OutputTensor> SlimTensors::widened(const Tensor& tensor, const TensorPlace& place) const {
  const AtomLayout layout(model_, weight_at(model_, place));
  const std::int64_t before = model_.shared_width, after = slimming_.shared_width;
  if (place.part == Part::shape) return shape_tensor(tensor, layout, 1, after);
  const auto rows = rows_to_grow(model_, layout, place.part);
  if (!rows) return std::nullopt;
  if (place.part == Part::order) return order_tensor(model_, tensor, layout, after);
  const bool blocks = place.part == Part::scale && layout.matrix().packing.scale_rows > 1;  // which may end early
  if (!blocks && (before % rows->step != 0 || after % rows->step != 0)) {
    throw InvalidInput(fmt::format("tensor {}: the shared expert would have to grow from width {} to {}, the next multiple "
                                   "of the experts' new width {}, and {} neighbours share their codes; keep a number of "
                                   "atomic experts that divides {}", tensor.name, before, after, slimming_.width,
                                   rows->step, before));
  }
  if (place.part == Part::values) {
    check_format(model_, tensor, layout, after, [&](Part part) -> std::optional<std::pair<std::size_t, std::int64_t>> {
      auto longer = rows_to_grow(model_, layout, part);
      if (!longer) return std::nullopt;
      longer->width = after;
      return std::pair{longer->dim, longer->length({})};
    });
  }
  const Slab slab{tensor, false};
  AtomRows wide = *rows;
  wide.width = after;
  OutputTensor out{tensor, {}};
  const auto all = std::make_shared<const AtomRanges>(AtomRanges{{0, static_cast<int>(before)}});
  AtomCut cut = rows->cut(all, slab.inner_bytes(rows->dim));
  cut.zero_bytes = static_cast<std::uint64_t>(wide.length({}) - rows->length({})) * slab.inner_bytes(rows->dim);
  out.pieces.push_back(slab.piece(-1, std::move(cut), edited_.recipe(tensor, place, -1, -1)));
  out.spec.shape[rows->dim] = wide.length({});
  return out;
}

}  // namespace moetrim
