// Where the atomic experts lie in the tensors of a weight.

#include "rewrite/atom_layout.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/quantised.h"

namespace moetrim {

namespace {

std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// A dimension of a part that follows the rows, or the columns, of its matrix: `neighbours` of them share `entries`.
struct PartAxis {
  std::size_t dim = 0;
  std::int64_t neighbours = 1;
  std::int64_t entries = 1;
};

/// Neighbours whose codes lie in whole words of 32 bits, and those words.
PartAxis in_words(std::size_t dim, int bits) { return bits == 3 ? PartAxis{dim, 32, 3} : PartAxis{dim, 32 / bits, 1}; }

PartAxis axis_of_values(const Packing& packing, std::size_t dims, bool rows) {
  const std::size_t in_order = rows ? 0 : 1;
  switch (packing.kind) {
    case PackingKind::plain:
    case PackingKind::fp8:
    case PackingKind::int8: return {in_order};
    case PackingKind::mxfp4: return rows ? PartAxis{0} : PartAxis{1, dims == 3 ? 32 : 2};
    case PackingKind::nvfp4: return rows ? PartAxis{0} : PartAxis{1, 2};
    case PackingKind::gptq: return rows ? PartAxis{1} : in_words(0, packing.bits);
    case PackingKind::awq: return rows ? PartAxis{1, 8} : PartAxis{0};
    case PackingKind::packed_int: return rows ? PartAxis{0} : in_words(1, packing.bits);
  }
  throw Error("a packing that does not exist");
}

/// Nothing where one scale serves all rows, or all columns.
std::optional<PartAxis> axis_of_scale(const Packing& packing, bool rows) {
  const std::int64_t sharing = rows ? packing.scale_rows : packing.scale_cols;
  if (sharing >= (rows ? packing.rows : packing.cols)) return std::nullopt;
  const bool turned = packing.kind == PackingKind::gptq || packing.kind == PackingKind::awq;  // [G, N]
  return PartAxis{rows != turned ? std::size_t{0} : std::size_t{1}, sharing};
}

std::optional<PartAxis> axis_of_zeros(const Packing& packing, bool rows) {
  if (!rows || packing.kind == PackingKind::int8) return axis_of_scale(packing, rows);
  switch (packing.kind) {
    case PackingKind::gptq: return in_words(1, packing.bits);
    case PackingKind::awq: return PartAxis{1, 8};
    case PackingKind::packed_int: return in_words(0, packing.bits);
    default: throw Error("a packing without zeros");
  }
}

std::optional<PartAxis> axis_of(const Packing& packing, Part part, std::size_t dims, bool rows) {
  switch (part) {
    case Part::values: return axis_of_values(packing, dims, rows);
    case Part::scale: return axis_of_scale(packing, rows);
    case Part::zeros: return axis_of_zeros(packing, rows);
    case Part::order: return rows ? std::optional<PartAxis>() : PartAxis{0};
    case Part::global_scale:
    case Part::input_scale:
    case Part::shape: return std::nullopt;
  }
  throw Error("a part that does not exist");
}

std::int64_t units_of(const AtomRange& range, std::int64_t step) {
  return ceil_divide(range.end, step) - range.begin / step;
}

}  // namespace

AtomRows bias_rows(const Model& model) {
  const bool paired = model.family->fused_interleaved;
  return {0, model.expert_width, 1, paired ? 2 : 1, paired ? 1 : 2, paired};
}

bool AtomRows::fits(const AtomRanges& atoms) const {
  return std::all_of(atoms.begin(), atoms.end(), [&](const AtomRange& range) {
    return range.begin % step == 0 && (range.end % step == 0 || range.end == width);
  });
}

std::int64_t AtomRows::length(const SharedAtoms& atoms) const {
  std::int64_t units = 0;
  if (!atoms) units = ceil_divide(width, step);
  else for (const AtomRange& range : *atoms) units += units_of(range, step);
  return runs * units * entries;
}

AtomCut AtomRows::cut(const SharedAtoms& atoms, std::uint64_t inner_bytes) const {
  AtomCut out;
  out.atoms = atoms;
  out.step = step;
  out.unit_bytes = out.kept_bytes = static_cast<std::uint64_t>(entries) * inner_bytes;
  out.row_bytes = static_cast<std::uint64_t>(ceil_divide(width, step)) * out.unit_bytes;
  return out;
}

AtomCut half_of(const AtomRows& rows, AtomCut cut, Half half) {
  if (rows.paired) cut.kept_bytes /= 2;
  else cut.row_bytes *= 2;
  if (half == Half::up) cut.first_byte = rows.paired ? cut.kept_bytes : cut.row_bytes / 2;
  return cut;
}

namespace {

/// Plain matrices have the shape of their rule, whatever is said of how other weights are quantised.
StoredMatrix matrix_of(const Model& model, const Weight& weight) {
  if (weight.packed()) {
    try {
      return stored_matrix(model, weight);
    } catch (const InvalidInput& problem) {
      throw InvalidInput(fmt::format("{}; so atomic experts cannot be cut out of its codes: plan to drop whole experts "
                                     "instead", problem.what()));
    }
  }
  const auto& axes = weight.rule->axes;
  StoredMatrix out;
  out.packing.rows = model.length(axes[axes.size() - 2]);
  out.packing.cols = model.length(axes.back());
  const Tensor& values = *weight.values();
  out.parts[Part::values] = StoredPart{values.name, values.dtype, {out.packing.rows, out.packing.cols}, nullptr};
  out.transposed = weight.rule->input_first();
  return out;
}

}  // namespace

AtomLayout::AtomLayout(const Model& model, const Weight& weight) : matrix_(matrix_of(model, weight)) {
  const TensorRule& rule = *weight.rule;
  const Axis first = rule.axes[rule.axes.size() - 2];
  const Axis last = rule.axes.back();
  const bool as_in_rule = !rule.input_first() || matrix_.transposed;
  const Axis rows = as_in_rule ? first : last;
  along_rows_ = rows == Axis::F || rows == Axis::F2 || rows == Axis::S;
  const Axis axis = along_rows_ ? rows : as_in_rule ? last : first;
  width_ = axis == Axis::S ? model.shared_width : model.expert_width;
  paired_ = axis == Axis::F2 && model.family->fused_interleaved;
  runs_ = axis == Axis::F2 && !paired_ ? 2 : 1;
}

std::optional<AtomRows> AtomLayout::rows(Part part) const {
  const auto axis = axis_of(matrix_.packing, part, matrix_.parts[part]->shape.size(), along_rows_);
  if (!axis) return std::nullopt;
  AtomRows out{axis->dim, width_, axis->neighbours, axis->entries, runs_, paired_};
  if (!paired_) return out;
  // A unit holds whole pairs.
  if (out.step % 2 == 0) out.step /= 2;
  else out.entries *= 2;
  return out;
}

AtomRows AtomLayout::value_rows() const {
  return {along_rows_ ? std::size_t{0} : std::size_t{1}, width_, 1, paired_ ? 2 : 1, runs_, paired_};
}

bool AtomLayout::fits(const AtomRanges& atoms) const {
  if (atoms == AtomRanges{{0, static_cast<int>(width_)}}) return true;
  for (std::size_t i = 0; i < kPartCount; ++i) {
    const auto part = static_cast<Part>(i);
    if (!matrix_.parts.has(part)) continue;
    const auto part_rows = rows(part);
    if (!part_rows) continue;
    if (part_rows->runs == 2 && width_ % part_rows->step != 0) return false;
    if (!part_rows->fits(atoms)) return false;
  }
  return true;
}

std::int64_t AtomLayout::block() const {
  std::int64_t block = 1;
  for (std::size_t i = 0; i < kPartCount; ++i) {
    const auto part = static_cast<Part>(i);
    const auto part_rows = matrix_.parts.has(part) ? rows(part) : std::nullopt;
    if (!part_rows) continue;
    if (part_rows->runs == 2 && width_ % part_rows->step != 0) return 0;
    block = std::lcm(block, part_rows->step);
  }
  return block;
}

}  // namespace moetrim
