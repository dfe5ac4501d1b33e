// Matrices of experts that are stored as factors of low rank and rows that stay whole.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "export/computed_slab.h"
#include "moetrim/export.h"
#include "moetrim/matrix.h"

namespace moetrim::export_detail {

/// Looks at every matrix of a request whose low rank is `factored`, by as many threads as the options say, and fills in which
/// rows stay whole: shapes, FactorPart::rows, the bytes of the row ids, and "low_rank" in config.json's "moetrim_slim".
/// @throws Interrupted when `stop` was set
void choose_stored_rows(ExportRequest& request, const ExportOptions& options);

/// What the factors take, and what the matrices would.
struct FactorBytes {
  std::uint64_t factored = 0, dense = 0;
  std::size_t matrices = 0, larger = 0;  ///< how many, and how many take more as factors
};
FactorBytes factor_bytes(std::span<const OutputTensor> tensors);

/// Keeps the factors of a matrix from one of its tensors to the next.
class ComputedFactors {
 public:
  /// Both must outlive this.
  ComputedFactors(const Model& model, ComputedSlab& slabs) : model_(model), slabs_(slabs) {}

  /// Bytes of a tensor with a factor, after choose_stored_rows; valid until the next call.
  /// @throws InvalidInput when a value is not finite, or the type cannot hold one.
  std::span<const std::byte> compute(const OutputTensor& tensor);

 private:
  /// The matrix of the tensor's piece, outputs first, without gaps.
  void take_matrix(const OutputTensor& tensor);
  void find_factors(const OutputTensor& tensor);
  void take_rows(const FactorPart& factor);

  const Model& model_;
  ComputedSlab& slabs_;
  std::size_t outputs_ = 0, inputs_ = 0;
  std::vector<double> matrix_, rows_;
  Factors factors_;
  std::vector<std::byte> stored_;
  /// What factors_ were made of.
  std::shared_ptr<const SlabRecipe> recipe_;
  const Tensor* source_ = nullptr;
  std::size_t place_ = 0;
};

}  // namespace moetrim::export_detail
