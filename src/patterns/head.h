// What all patterns of a library have in common, private to the stage.
#pragma once

#include <nlohmann/json.hpp>

#include "moetrim/statistics.h"

namespace moetrim {

/// The checkpoint, its router and layers, and what PreMoe's marks mean: all of a manifest that patterns must agree on to be
/// compared and mixed.
/// @param manifest  as manifest_to_json gives it
nlohmann::ordered_json library_head(nlohmann::ordered_json manifest);
nlohmann::ordered_json library_head(const StatisticsManifest& manifest);

}  // namespace moetrim
