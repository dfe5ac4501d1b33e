// Matrices of quantised weights: dequantised, cut, and quantised again where that is wanted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "export/computed_slab.h"
#include "moetrim/export.h"
#include "moetrim/quantised.h"

namespace moetrim::export_detail {

/// Number of matrices that a computation gives, one after another.
std::size_t matrix_count(const Computation& computation);

/// Memory for one of them: what is read and what is computed.
std::uint64_t matrix_bytes(const Model& model, const Computation& computation);
/// Its piece where that has a recipe, else null.
const Piece* piece_with_recipe(const OutputTensor& tensor, std::size_t index);

/// Keeps its buffers from one matrix to the next.
class ComputedMatrix {
 public:
  /// All must outlive this; the source is the model's checkpoint.
  ComputedMatrix(const Checkpoint& source, const Model& model, ComputedSlab& slabs)
      : source_(source), model_(model), reader_(source, model), slabs_(slabs) {}

  /// Bytes of matrix `index` of a tensor with a computation; valid until the next call.
  /// @throws InvalidInput on a scale that cannot be meant.
  std::span<const std::byte> compute(const OutputTensor& tensor, std::size_t index);

 private:
  /// Whether its codes and scales stay what they are.
  bool keeps_bytes(const OutputTensor& tensor, std::size_t index) const;
  std::span<const std::byte> kept_bytes(const OutputTensor& tensor, std::size_t index);
  std::span<const std::byte> dequantised(const OutputTensor& tensor, std::size_t index);
  std::span<const std::byte> quantised_again(const OutputTensor& tensor, std::size_t index);
  /// The values that stay, rows and columns as stored.
  template <class Value>
  std::span<const Value> cut(const Computation& computation, std::size_t index, const std::vector<Value>& values);

  const Checkpoint& source_;
  const Model& model_;
  SlabReader reader_;
  ComputedSlab& slabs_;
  std::vector<std::byte> raw_, cut_, out_;
  std::vector<std::uint16_t> halves_;
  std::vector<float> floats_;
};

}  // namespace moetrim::export_detail
