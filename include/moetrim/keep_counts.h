// Every number of experts that a layer can keep.
#pragma once

#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// What legal_keep() accepts as numbers, ascending.
/// @throws InvalidInput when the router cannot choose among its own experts, or cannot be regrouped.
std::vector<int> keep_counts(const RouterLimits& limits, bool regroup);

}  // namespace moetrim
