// Where the atomic experts lie in the tensors of a weight.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/rewrite.h"

namespace moetrim {

/// One dimension of a matrix, or of its scale or zeros, along which atomic experts lie.
struct AtomRows {
  std::size_t dim = 0;       ///< of one matrix, without the expert axis
  std::int64_t width = 0;    ///< atomic experts before
  std::int64_t step = 1;     ///< atomic experts of a unit
  std::int64_t entries = 1;  ///< of the dimension, per unit
  std::int64_t runs = 1;     ///< rows of atomic experts in the dimension: 2 where up follows gate
  bool paired = false;       ///< gate and up take turns, and a unit has both

  /// Whether the ranges begin and end where units do.
  bool fits(const AtomRanges& atoms) const;
  /// Length of the dimension when these stay; all of them for null.
  std::int64_t length(const SharedAtoms& atoms) const;
  /// @param inner_bytes  of one entry: all dimensions after `dim`
  AtomCut cut(const SharedAtoms& atoms, std::uint64_t inner_bytes) const;
};

/// Gate or up alone.
enum class Half : std::uint8_t { gate, up };

/// A weight of an expert, or of the shared expert, as it is stored.
class AtomLayout {
 public:
  /// @throws InvalidInput when the codes are of a kind that nothing here knows.
  AtomLayout(const Model& model, const Weight& weight);

  const StoredMatrix& matrix() const { return matrix_; }
  /// Whether the atomic experts are the rows of the matrix as stored, not its columns.
  bool along_rows() const { return along_rows_; }
  /// Nothing for a part that all atomic experts share.
  std::optional<AtomRows> rows(Part part) const;
  /// The same of the weight's values, one number each, with rows and columns as stored.
  AtomRows value_rows() const;
  /// True when every part can be cut so.
  bool fits(const AtomRanges& atoms) const;
  /// Least multiple on which ranges must begin and end; 0 when gate and up share a unit, so that there is none.
  std::int64_t block() const;

 private:
  StoredMatrix matrix_;
  std::int64_t width_ = 0;
  bool along_rows_ = false;
  std::int64_t runs_ = 1;
  bool paired_ = false;
};

/// Gate and up of the biases of fused experts: [2F].
AtomRows bias_rows(const Model& model);

/// A stacked or paired pair of rows cut to one of its halves.
AtomCut half_of(const AtomRows& rows, AtomCut cut, Half half);

}  // namespace moetrim
