// The one place where scores become a kept set, private to the stage.
#pragma once

#include <span>
#include <vector>

namespace moetrim {

/// The `keep` experts with the highest scores, protected ones first; of equal scores the lower id.
/// @param protect  [experts]; empty: none is protected. Not more than `keep` of them.
/// @return ids, ascending.
std::vector<int> best_experts(std::span<const double> scores, const std::vector<bool>& protect, int keep);

}  // namespace moetrim
