// Factorisation analysis: how much of the experts' matrices factors of low rank would leave out. Nothing is written; the
// shares say whether factors are worth training, or shared between experts.
//
// Joint (MoLE, arXiv 2503.23100): one factor of rank r on the side of the hidden states serves all experts of a layer, W_e =
// B_e A for gate and up, W_e = A B_e for down. The best A is spanned by eigenvectors of the [H, H] Gram matrix of all
// experts, so that what it leaves is the sum of the smaller eigenvalues. Of each alone (MC-SMoE, arXiv 2310.01334): the tail
// of its own squared singular values, what the structured sparse part would have to hold.
#pragma once

#include <cstdint>
#include <vector>

#include "moetrim/family.h"

namespace moetrim {

/// What factors of one rank leave out.
struct RankResidual {
  std::int64_t rank = 0;
  double residual = 0;   ///< share of the squared values that is left, in [0, 1]; of single experts the mean
  double largest = 0;    ///< of any expert; the same for the joint factor
  double size = 0;       ///< parameters of the factors, as a share of those of the matrices
};

/// One projection of all experts of a layer, at ranks of 1/16, 1/8, 1/4 and 1/2 of the side that they are of.
struct ProjectionResiduals {
  std::vector<RankResidual> joint;   ///< of H
  std::vector<RankResidual> alone;   ///< of the smaller of F and H
};

struct LayerResiduals {
  int layer = 0;   ///< absolute id
  ProjectionResiduals gate, up, down;
};

/// Reads the layer's experts, one matrix at a time, quantised ones as their values; sums are fp64. Memory: some [H, H]
/// matrices.
/// @throws InvalidInput when values cannot be computed or are not finite; UsageError when the layer has no experts.
LayerResiduals factorise_layer(const Model& model, int layer);

}  // namespace moetrim
