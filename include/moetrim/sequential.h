// Sequential calibration as plans see it: every layer was measured behind layers that were already pruned, so that the
// statistics belong to one choice of experts.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/plan.h"
#include "moetrim/statistics.h"

namespace moetrim {

/// What decided which experts a plan keeps: {"method", "variant", "keep", "regroup", "seed", "tasks": [{"name", "weight"}],
/// "protect"}. Of statistics it is settings.sequential of their manifest.
/// @param protect  the requests, as PlanRequest::protect has them.
nlohmann::ordered_json choice_of(const Plan& plan, const std::vector<std::string>& protect);

/// A sentence for the reader of a plan that keeps other experts than those its statistics were measured behind; empty when
/// the plan is that of the calibration, or the calibration was not sequential.
std::string sequential_note(const StatisticsManifest& manifest, const Plan& plan);

/// The requests of protection that are of one layer: {"3:1", "3:7"} of {"3:1,7,5:0"} for layer 3.
/// @throws UsageError for "super", which compares all layers, and for what cannot be read; InvalidInput for a layer or
///         expert that there is not.
std::vector<std::string> protection_of_layer(const std::vector<std::string>& protect, const StatisticsManifest& manifest,
                                             int layer);

}  // namespace moetrim
