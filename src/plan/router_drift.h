// The growth of kept gates, private to the stage.
#pragma once

#include <optional>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// Share of the router's probability that the experts `keep` had, mean over the counted tokens of each task, then over the
/// tasks by weight.
/// @param weights  [tasks]
/// @return nothing when no token was counted, or they had no probability at all.
std::optional<double> kept_mass(const LayerStatistics& layer, const std::vector<int>& keep, const std::vector<double>& weights);

/// @throws InvalidInput naming a layer of the plan that has no kept mass.
void check_kept_mass(const Plan& plan);

}  // namespace moetrim
