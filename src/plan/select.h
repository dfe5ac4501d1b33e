// The one place where scores become a kept set, and how two of them compare, private to the stage.
#pragma once

#include <span>
#include <vector>

namespace moetrim {

/// The keep / groups experts of every group with the highest scores, protected ones first; of equal scores the lower id.
/// @param protect  [experts]; empty: none is protected. Not more than keep / groups of a group.
/// @param groups   divides `keep` and the number of experts; a group's experts are contiguous.
/// @return ids, ascending.
std::vector<int> best_experts(std::span<const double> scores, const std::vector<bool>& protect, int keep, int groups = 1);

/// Size of the intersection over size of the union (Jaccard). Ids ascending.
double overlap(const std::vector<int>& a, const std::vector<int>& b);

}  // namespace moetrim
