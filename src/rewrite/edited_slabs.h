// Which slabs of the new checkpoint an operation changes, and how.
#pragma once

#include <memory>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/rewrite.h"
#include "rewrite/operations.h"
#include "rewrite/renumbering.h"

namespace moetrim {

class EditedSlabs {
 public:
  /// All must outlive this.
  EditedSlabs(const Model& model, const Plan& plan, const Renumbering& numbers, const RewriteSources& sources);

  /// What the slab is made of; null when its bytes are those of the source.
  /// @param slot    of the experts or of the router's rows; -1: the tensor has no expert axis
  /// @param expert  its id in the source; likewise
  /// @throws InvalidInput when values of such a format cannot be computed and stored again.
  std::shared_ptr<const SlabRecipe> recipe(const Tensor& tensor, const TensorPlace& place, int slot, int expert) const;

  /// Codes and scales are not made piece by piece: where a piece of a quantised tensor has a recipe, all its matrices are
  /// quantised again, but for those without one, which keep their bytes.
  /// @param experts  ids in the source, of a fused tensor's pieces
  void requantise(OutputTensor& tensor, const TensorPlace& place, const std::vector<int>& experts) const;

 private:
  const Model& model_;
  const Operations operations_;
  std::vector<const PlanLayer*> layers_;  ///< [layers and blocks], null where the plan says nothing
};

/// FP8 in blocks, which may end early at the borders of the matrix.
bool can_be_quantised_again(const StoredMatrix& matrix);

}  // namespace moetrim
