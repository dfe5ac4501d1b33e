// Tensors of which an operation changes values.
#pragma once

#include <vector>

#include "moetrim/family.h"
#include "moetrim/rewrite.h"
#include "rewrite/operations.h"
#include "rewrite/renumbering.h"

namespace moetrim {

class EditedTensors {
 public:
  /// All must outlive this.
  EditedTensors(const Model& model, const Plan& plan, const Renumbering& numbers, const RewriteSources& sources);

  /// Appends what becomes of the tensor. False when no operation changes any of its slabs, so that its bytes are moved.
  /// @throws InvalidInput when values of such a format cannot be computed.
  bool append(const Tensor& tensor, const TensorPlace& place, std::vector<OutputTensor>& out) const;

 private:
  std::vector<SlabRecipe> recipes(const PlanLayer& layer, const TensorPlace& place, int slot) const;

  const Model& model_;
  const Renumbering& numbers_;
  const Operations operations_;
  std::vector<const PlanLayer*> layers_;  ///< [layers and blocks], null where the plan says nothing
};

}  // namespace moetrim
