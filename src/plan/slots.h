// Slots of a layer: which expert of the checkpoint each holds.
#pragma once

#include <string>

#include "moetrim/plan.h"

namespace moetrim {

/// What is wrong with the slots of a layer of a plan, as a clause for messages; empty: they can be had from a checkpoint of so many
/// experts.
std::string slots_problem(const Plan& plan, const PlanLayer& layer, int experts);

}  // namespace moetrim
