// The bytes of a tensor's steps: pieces that are copied or cut, what the plan says, or matrices that are computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "export/computed_factors.h"
#include "export/computed_matrix.h"
#include "export/piece_reader.h"
#include "moetrim/export.h"

namespace moetrim::export_detail {

/// A tensor is its steps, joined: pieces, matrices, or one literal.
std::size_t step_count(const OutputTensor& tensor);

/// Reads one step after another, in any order; keeps its buffers meanwhile.
class TensorReader {
 public:
  /// All must outlive this; the source is the model's checkpoint.
  TensorReader(const Checkpoint& source, const Model& model, Alignments& alignments)
      : pieces_(source), slab_(source, model, alignments), matrix_(source, model, slab_), factors_(model, slab_) {}

  /// Starts with a step of a tensor, which must outlive the reading.
  void open(const OutputTensor& tensor, std::size_t step);
  /// Fills `out` with what comes next. @return its size, or less when the step is at its end.
  std::size_t read(std::span<std::byte> out);

 private:
  PieceReader pieces_;
  ComputedSlab slab_;
  ComputedMatrix matrix_;
  ComputedFactors factors_;
  bool in_memory_ = false;
  std::span<const std::byte> ready_;  ///< what is left of a literal or a computed matrix
};

}  // namespace moetrim::export_detail
