// What the values of a new tensor are made of, where they are not bytes of the source.
//
// A slab is an expert's share of a tensor: the slice of a fused tensor along E, or a tensor of one expert; or all of a tensor
// that has no expert axis.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// A merge group whose members' atomic experts are put into the order of those of `into`. One object per group, so that the
/// slabs of its tensors share the permutations, which are found when they are first needed.
struct AlignedGroup {
  int layer = 0;       ///< absolute id
  MergeGroup group;
  Alignment by = Alignment::none;
};

/// One expert's share of a mean.
struct Contribution {
  int expert = -1;     ///< id in the source; -1 in a tensor without an expert axis
  double weight = 1;
};

/// How factors are stored.
enum class LowRankForm : std::uint8_t {
  dense,     ///< multiplied out, in the matrix's place
  factored,  ///< as tensors of their own, which our own modelling code reads
};

/// What every matrix of an expert becomes: factors of low rank, and what they leave of the rows (outputs) where that is most.
/// A row that keeps what the factors leave is the matrix's own, the others are the factors' product.
/// Source: the compression step of MC-SMoE (arXiv 2310.01334, after LoSparse, arXiv 2306.11222).
struct LowRank {
  int rank = 0;
  LowRankForm form = LowRankForm::dense;
  /// Rows stay whole from this importance on. Known once all matrices were looked at.
  float threshold = 0;
  /// Importance of rows by absolute layer id, as measured: [E, 2 F + H], those of gate, up and down. Filled with the threshold;
  /// empty where a row's importance is its mean |matrix - factors|.
  std::map<int, std::vector<float>> measured = {};
};

/// The values of a slab, before atomic experts are cut: factor x (sum of weight x slab of the expert) x `along_hidden`, plus
/// noise; or `values`. `low_rank` comes last.
struct SlabRecipe {
  std::vector<Contribution> parts;                           ///< none: zeros
  std::shared_ptr<const AlignedGroup> group;                 ///< of the parts, in its order; null: nothing is aligned
  double factor = 1;
  std::shared_ptr<const std::vector<float>> along_hidden;    ///< [H] or null
  bool divides = false;                                      ///< by `along_hidden` instead (the norm's weight)
  double norm_offset = 0;  ///< added to the weights before, and taken off after dividing: 1 for norms that store weight - 1
  std::shared_ptr<const std::vector<float>> values;          ///< [elements of the slab] or null
  double noise = 0;                                          ///< standard deviation, as a share of the slab's root mean square
  std::uint64_t noise_seed = 0;                              ///< of this slab

  std::shared_ptr<const LowRank> low_rank;

  /// Whether the slab's bytes are those of one expert's, unchanged.
  bool untouched() const {
    return parts.size() == 1 && parts[0].weight == 1 && factor == 1 && !along_hidden && !values && noise == 0 && !low_rank;
  }
};

}  // namespace moetrim
