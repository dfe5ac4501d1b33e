// Matrices of quantised weights: dequantised, cut, and quantised again where that is wanted.

#include "export/computed_matrix.h"

#include <algorithm>
#include <cstring>

#include "export/fp8_blocks.h"
#include "export/piece_reader.h"
#include "moetrim/error.h"
#include "rewrite/atom_layout.h"

namespace moetrim::export_detail {

namespace {

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

/// How many columns are left of `values` of them; rows follow.
std::size_t columns_left(const Model& model, const Computation& computation, std::size_t index, const Packing& packing,
                         std::size_t values) {
  const bool cut = atoms_of(computation, index) && !AtomLayout(model, *computation.weight).along_rows();
  return cut ? values / static_cast<std::size_t>(packing.rows) : static_cast<std::size_t>(packing.cols);
}

}  // namespace

std::size_t matrix_count(const Computation& computation) {
  return computation.weight->fused() ? computation.experts.size() : 1;
}

const Piece* piece_with_recipe(const OutputTensor& tensor, std::size_t index) {
  const bool piece_by_piece = tensor.pieces.size() == matrix_count(*tensor.computation);
  return piece_by_piece && tensor.pieces[index].recipe ? &tensor.pieces[index] : nullptr;
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

std::span<const std::byte> ComputedMatrix::compute(const OutputTensor& tensor, std::size_t index) {
  if (keeps_bytes(tensor, index)) return kept_bytes(tensor, index);
  return tensor.computation->result == Computation::Result::bf16 ? dequantised(tensor, index) : quantised_again(tensor, index);
}

bool ComputedMatrix::keeps_bytes(const OutputTensor& tensor, std::size_t index) const {
  const Computation& computation = *tensor.computation;
  if (computation.result == Computation::Result::bf16 || piece_with_recipe(tensor, index) != nullptr) return false;
  const SharedAtoms atoms = atoms_of(computation, index);
  return !atoms || AtomLayout(model_, *computation.weight).fits(*atoms);
}

std::span<const std::byte> ComputedMatrix::kept_bytes(const OutputTensor& tensor, std::size_t index) {
  const Piece& piece = tensor.pieces[index];
  raw_.resize(static_cast<std::size_t>(piece.end - piece.begin));
  source_.read(*piece.source, piece.begin, raw_);
  const SharedAtoms atoms = atoms_of(*tensor.computation, index);
  const AtomLayout layout(model_, *tensor.computation->weight);
  const Part part = tensor.computation->result == Computation::Result::fp8 ? Part::values : Part::scale;
  const auto rows = layout.rows(part);
  if (!atoms || !rows) return raw_;
  const StoredPart& stored = *layout.matrix().parts[part];
  const std::size_t inner = rows->dim == 0 ? static_cast<std::size_t>(stored.shape.at(1)) : 1;
  cut_rows(raw_, rows->cut(atoms, inner * static_cast<std::size_t>(dtype_bits(stored.dtype)) / 8), cut_);
  return cut_;
}

std::span<const std::byte> ComputedMatrix::dequantised(const OutputTensor& tensor, std::size_t index) {
  const Computation& computation = *tensor.computation;
  const Weight& weight = *computation.weight;
  StoredMatrix matrix = stored_matrix(model_, weight);
  halves_.resize(static_cast<std::size_t>(matrix.packing.rows * matrix.packing.cols));
  if (const Piece* piece = piece_with_recipe(tensor, index)) {
    store_values(slabs_.values(*piece), Dtype::bf16, tensor.spec.name, raw_);
    std::memcpy(halves_.data(), raw_.data(), raw_.size());
  } else {
    reader_.read_parts(weight, weight.fused() ? computation.experts[index] : -1, matrix.parts);
    dequantise_bf16(matrix.parts, matrix.packing, halves_);
  }
  const auto kept = cut(computation, index, halves_);
  if (!is_flipped(weight, matrix)) return std::as_bytes(kept);
  const std::size_t left = columns_left(model_, computation, index, matrix.packing, kept.size());
  transpose(kept, out_, left == 0 ? 0 : kept.size() / left, left);
  return out_;
}

std::span<const std::byte> ComputedMatrix::quantised_again(const OutputTensor& tensor, std::size_t index) {
  const Computation& computation = *tensor.computation;
  const Weight& weight = *computation.weight;
  const StoredMatrix matrix = stored_matrix(model_, weight);
  if (const Piece* piece = piece_with_recipe(tensor, index)) {
    const auto values = slabs_.values(*piece);
    floats_.assign(values.begin(), values.end());
  } else {
    reader_.read(weight, weight.fused() ? computation.experts[index] : -1, floats_);
  }
  const auto kept = cut(computation, index, floats_);
  const StoredPart& scale = *matrix.parts[Part::scale];
  const Blocks blocks{columns_left(model_, computation, index, matrix.packing, kept.size()),
                      static_cast<std::size_t>(matrix.packing.scale_rows), static_cast<std::size_t>(matrix.packing.scale_cols)};
  const std::vector<float> scales = block_scales(kept, blocks, scale.dtype, scale.name);
  if (computation.result == Computation::Result::fp8) encode_blocks(kept, blocks, scales, out_);
  else store_scales(scales, scale.dtype, out_);
  return out_;
}

}  // namespace moetrim::export_detail
