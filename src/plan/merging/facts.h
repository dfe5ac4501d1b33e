// What the statistics say of experts that may be merged, private to the stage.
#pragma once

#include <span>
#include <vector>

#include "moetrim/merging.h"

namespace moetrim {

/// All experts of a layer. Every task's sums are divided by its tokens, multiplied by its weight and added.
/// @param saliency  [experts]
/// @param weights   [tasks]; 0: the task is left out.
MergeFacts layer_facts(const LayerStatistics& layer, const ExpertVectors& vectors, std::vector<double> saliency,
                       std::span<const double> weights, bool logits, bool outputs);

/// Some of them. @param ids  ascending
MergeFacts facts_of(const MergeFacts& layer, std::span<const int> ids);

}  // namespace moetrim
