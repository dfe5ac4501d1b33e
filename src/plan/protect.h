// Protection requests to experts, private to the stage.
#pragma once

#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// Reads every "super" and "L:E,E,…", and adds the experts that are there by id. An expert named twice is listed once, with
/// the first reason.
/// @return by layer, then expert.
/// @throws UsageError for text that cannot be read; InvalidInput for a layer or expert that does not exist.
std::vector<ProtectedExpert> resolve_protection(const Statistics& statistics, const PlanRequest& request, Variant variant);

}  // namespace moetrim
