// Slabs whose values a recipe says: means of experts, factors, noise, given values.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "export/alignments.h"
#include "export/low_rank.h"
#include "export/slab_values.h"
#include "moetrim/rewrite.h"

namespace moetrim::export_detail {

/// Memory for one of them, and for the alignment it may need.
std::uint64_t slab_bytes(const Model& model, const Piece& piece);

/// Keeps its buffers from one slab to the next.
class ComputedSlab {
 public:
  /// All must outlive this.
  ComputedSlab(const Checkpoint& source, const Model& model, Alignments& alignments)
      : model_(model), reader_(source, model), alignments_(alignments) {}

  /// The values of a piece with a recipe, in the order of the source, before its cut; valid until the next call.
  /// @throws InvalidInput when the values cannot be aligned.
  std::span<const double> values(const Piece& piece);
  /// The same before its matrices become factors.
  std::span<const double> whole_values(const Piece& piece) {
    mix(piece);
    return sum_;
  }
  /// Of the rows of its matrices: what factors of low rank would miss.
  std::vector<RowImportance> row_importance(const Piece& piece);
  /// Its bytes, after the cut. Only for BF16, F16 and F32.
  /// @throws InvalidInput also when the type cannot hold a value.
  std::span<const std::byte> bytes(const Piece& piece);

 private:
  /// All of the recipe but the factors.
  void mix(const Piece& piece);
  void factor(const Piece& piece, std::vector<RowImportance>* importance);
  void add(const TensorPlace& place, const Contribution& part, std::span<const std::int32_t> permutation);
  void multiply(const SlabRecipe& recipe, const Weight& weight);
  void add_noise(const SlabRecipe& recipe);

  const Model& model_;
  SlabReader reader_;
  Alignments& alignments_;
  std::vector<float> part_;
  std::vector<double> sum_;
  std::vector<std::byte> stored_, cut_;
  /// What `stored_` was made of: where experts are listed, gate and up are two pieces of one slab.
  std::shared_ptr<const SlabRecipe> recipe_;
  const Tensor* source_ = nullptr;
};

}  // namespace moetrim::export_detail
