// Matrices of quantised weights: dequantised, cut, and quantised again where that is wanted.

#include "export/computed_matrix.h"

#include <algorithm>

#include "export/fp8_blocks.h"
#include "export/piece_reader.h"
#include "moetrim/error.h"
#include "rewrite/atom_layout.h"

namespace moetrim::export_detail {

namespace {

struct Range {
  std::uint64_t begin = 0, size = 0;
};

/// One expert's share of a fused part, or all of it where one value serves all experts.
Range range_of(const Tensor& tensor, const Weight& weight, int expert) {
  const bool one_for_all = tensor.shape.empty() || tensor.shape == std::vector<std::int64_t>{1};
  if (!weight.fused() || one_for_all) return {0, tensor.size};
  const std::uint64_t size = tensor.size / static_cast<std::uint64_t>(tensor.shape[0]);
  return {size * static_cast<std::uint64_t>(expert), size};
}

/// [rows, cols] to [cols, rows], in squares that fit the cache.
void transpose(std::span<const std::uint16_t> from, std::vector<std::byte>& out, std::size_t rows, std::size_t cols) {
  constexpr std::size_t kSide = 32;
  out.resize(from.size() * sizeof(std::uint16_t));
  auto* to = reinterpret_cast<std::uint16_t*>(out.data());
  for (std::size_t row = 0; row < rows; row += kSide) {
    for (std::size_t col = 0; col < cols; col += kSide) {
      for (std::size_t r = row; r < std::min(rows, row + kSide); ++r) {
        for (std::size_t c = col; c < std::min(cols, col + kSide); ++c) to[c * rows + r] = from[r * cols + c];
      }
    }
  }
}

/// True when values as stored must be transposed to lie as the family's plain tensor does: codes of fused experts are stored
/// output first also where plain experts are input first (gpt-oss).
bool is_flipped(const Weight& weight, const StoredMatrix& matrix) {
  return weight.rule->input_first() && !matrix.transposed;
}

SharedAtoms atoms_of(const Computation& computation, std::size_t index) {
  return computation.atoms.empty() ? nullptr : computation.atoms[index];
}

}  // namespace

std::size_t matrix_count(const Computation& computation) {
  return computation.weight->fused() ? computation.experts.size() : 1;
}

std::uint64_t matrix_bytes(const Model& model, const Computation& computation) {
  const StoredMatrix matrix = stored_matrix(model, *computation.weight);
  const auto values = static_cast<std::uint64_t>(matrix.packing.rows) * static_cast<std::uint64_t>(matrix.packing.cols);
  const bool bf16 = computation.result == Computation::Result::bf16;
  // The values, those that stay, and codes or the values the other way round.
  std::uint64_t bytes = values * (bf16 ? 2 : 4) * (computation.atoms.empty() ? 1 : 2);
  if (!bf16) bytes += values;
  else if (is_flipped(*computation.weight, matrix)) bytes += 2 * values;
  for (std::size_t part = 0; part < kPartCount; ++part) {
    const auto& stored = matrix.parts[static_cast<Part>(part)];
    if (stored) bytes += TensorSpec{stored->name, stored->dtype, stored->shape}.bytes();
  }
  return bytes;
}

void ComputedMatrix::read_parts(const Weight& weight, int expert, PackedWeight& parts) {
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

template <class Value>
std::span<const Value> ComputedMatrix::cut(const Computation& computation, std::size_t index,
                                           const std::vector<Value>& values) {
  const SharedAtoms atoms = atoms_of(computation, index);
  if (!atoms) return values;
  const AtomLayout layout(model_, *computation.weight);
  const AtomRows rows = layout.value_rows();
  const Packing& packing = layout.matrix().packing;
  AtomCut cut = rows.cut(atoms, sizeof(Value) * (layout.along_rows() ? static_cast<std::uint64_t>(packing.cols) : 1));
  cut.zero_bytes = static_cast<std::uint64_t>(computation.zeros) * cut.unit_bytes;
  cut_rows(std::as_bytes(std::span(values)), cut, cut_);
  return {reinterpret_cast<const Value*>(cut_.data()), cut_.size() / sizeof(Value)};
}

std::span<const std::byte> ComputedMatrix::compute(const Computation& computation, std::size_t index) {
  const Weight& weight = *computation.weight;
  StoredMatrix matrix = stored_matrix(model_, weight);
  read_parts(weight, weight.fused() ? computation.experts[index] : -1, matrix.parts);
  const auto rows = static_cast<std::size_t>(matrix.packing.rows);
  const auto cols = static_cast<std::size_t>(matrix.packing.cols);
  // How many columns are left; rows follow.
  const auto cols_of = [&](std::size_t values) {
    const SharedAtoms atoms = atoms_of(computation, index);
    return atoms && !AtomLayout(model_, weight).along_rows() ? values / rows : cols;
  };
  if (computation.result == Computation::Result::bf16) {
    halves_.resize(rows * cols);
    dequantise_bf16(matrix.parts, matrix.packing, halves_);
    const auto kept = cut(computation, index, halves_);
    if (!is_flipped(weight, matrix)) return std::as_bytes(kept);
    const std::size_t left = cols_of(kept.size());
    transpose(kept, out_, left == 0 ? 0 : kept.size() / left, left);
    return out_;
  }
  floats_.resize(rows * cols);
  dequantise(matrix.parts, matrix.packing, floats_);
  const auto kept = cut(computation, index, floats_);
  const StoredPart& scale = *matrix.parts[Part::scale];
  const Blocks blocks{cols_of(kept.size()), static_cast<std::size_t>(matrix.packing.scale_rows),
                      static_cast<std::size_t>(matrix.packing.scale_cols)};
  const std::vector<float> scales = block_scales(kept, blocks, scale.dtype, scale.name);
  if (computation.result == Computation::Result::fp8) encode_blocks(kept, blocks, scales, out_);
  else store_scales(scales, scale.dtype, out_);
  return out_;
}

}  // namespace moetrim::export_detail
