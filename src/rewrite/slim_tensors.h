// What becomes of the tensors of experts that lose atomic experts, and of a shared expert that must follow.
#pragma once

#include <vector>

#include "moetrim/family.h"
#include "moetrim/rewrite.h"
#include "rewrite/atom_layout.h"
#include "rewrite/edited_slabs.h"
#include "rewrite/renumbering.h"

namespace moetrim {

/// The weight that a tensor is a part of. Only for places with a rule.
const Weight& weight_at(const Model& model, const TensorPlace& place);

class SlimTensors {
 public:
  /// All must outlive this.
  SlimTensors(const Model& model, const Slimming& slimming, const Renumbering& numbers, const EditedSlabs& edited)
      : model_(model), slimming_(slimming), numbers_(numbers), edited_(edited) {}

  /// Appends what becomes of the tensor. False when its bytes follow whole experts, as if there were no atomic experts.
  /// @throws InvalidInput when codes cannot be parted where the plan says.
  bool append(const Tensor& tensor, const TensorPlace& place, std::vector<OutputTensor>& out) const;

 private:
  /// One matrix of a tensor: a kept expert's, or the shared one's.
  struct Matrix {
    int expert = -1;    ///< in the source; of a fused tensor
    int slot = -1;      ///< in the new checkpoint
    SharedAtoms atoms;
    std::shared_ptr<const SlabRecipe> recipe;
  };
  std::vector<Matrix> matrices(const Tensor& tensor, const TensorPlace& place) const;
  OutputTensor narrowed(const Tensor& tensor, const TensorPlace& place, const std::vector<Matrix>& kept) const;
  OutputTensor cut(const Tensor& tensor, const TensorPlace& place, const AtomRows& rows,
                   const std::vector<Matrix>& kept) const;
  OutputTensor quantised_again(const Tensor& tensor, const TensorPlace& place, const AtomLayout& layout,
                               const std::vector<Matrix>& kept) const;
  void append_listed(const Tensor& tensor, const TensorPlace& place, const std::vector<Matrix>& kept,
                     std::vector<OutputTensor>& out) const;
  /// The four parts of a matrix that is stored as factors; `part` is gate, up or down.
  void append_factors(const Tensor& tensor, const TensorPlace& place, const Matrix& matrix, std::string_view part,
                      std::vector<OutputTensor>& out) const;
  /// Nothing for a part that stays as it is.
  std::optional<OutputTensor> widened(const Tensor& tensor, const TensorPlace& place) const;

  const Model& model_;
  const Slimming& slimming_;
  const Renumbering& numbers_;
  const EditedSlabs& edited_;
};

}  // namespace moetrim
