// Matrices of quantised weights: dequantised, cut, and quantised again where that is wanted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrim/export.h"
#include "moetrim/quantised.h"

namespace moetrim::export_detail {

/// Number of matrices that a computation gives, one after another.
std::size_t matrix_count(const Computation& computation);

/// Memory for one of them: what is read and what is computed.
std::uint64_t matrix_bytes(const Model& model, const Computation& computation);

/// Keeps its buffers from one matrix to the next.
class ComputedMatrix {
 public:
  /// The source is the model's checkpoint. Both must outlive this.
  ComputedMatrix(const Checkpoint& source, const Model& model) : source_(source), model_(model) {}

  /// Bytes of matrix `index`; valid until the next call. @throws InvalidInput on a scale that cannot be meant.
  std::span<const std::byte> compute(const Computation& computation, std::size_t index);

 private:
  void read_parts(const Weight& weight, int expert, PackedWeight& parts);
  /// The values that stay, rows and columns as stored.
  template <class Value>
  std::span<const Value> cut(const Computation& computation, std::size_t index, const std::vector<Value>& values);

  const Checkpoint& source_;
  const Model& model_;
  std::vector<std::byte> raw_, cut_, out_;
  std::vector<std::uint16_t> halves_;
  std::vector<float> floats_;
};

}  // namespace moetrim::export_detail
