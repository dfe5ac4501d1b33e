// Protection requests to experts, private to the stage.
#pragma once

#include <string>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// Reads every "super" and "L:E,E,…". An expert named twice is listed once, with the first reason.
/// @return by layer, then expert.
/// @throws UsageError for text that cannot be read; InvalidInput for a layer or expert that does not exist.
std::vector<ProtectedExpert> resolve_protection(const Statistics& statistics, const std::vector<std::string>& requests,
                                                Variant variant);

}  // namespace moetrim
