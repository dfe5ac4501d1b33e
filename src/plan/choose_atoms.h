// Scores of atomic experts and limits to what stays of every kept expert, private to the stage.
#pragma once

#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// Sets the plan's width, every layer's atoms and the source's `rounding.atoms`, `atoms` and `expected`.
/// @param plan    with its layers' kept experts, and its protection.
/// @param routed  [layers][experts] tokens of the scored tasks
/// @throws InvalidInput when a limit cannot be met, naming the least that can.
void choose_atoms(const StatisticsManifest& manifest, const Scores& scores, const PlanRequest& request,
                  const std::vector<std::vector<double>>& routed, Plan& plan);

}  // namespace moetrim
