// What a plan does beside keeping experts and atomic experts, in its file: merging, scaling, silencing, constants, smoothing.
#pragma once

#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

#include "moetrim/json_fields.h"
#include "moetrim/plan.h"

namespace moetrim {

/// More experts than any router could choose among.
inline constexpr int kMostSlots = 1 << 20;

/// Order of slots, router and alignment of merged experts, noise: what must be known before the layers are read.
void read_head_changes(JsonFields& fields, Plan& plan);
void write_head_changes(const Plan& plan, nlohmann::ordered_json& json);

/// @param where  path of the layer inside the file
/// @throws InvalidInput naming the field, also for an expert that the layer does not have or that is in two groups.
void read_changes(JsonFields& fields, const std::filesystem::path& file, const std::string& where, const Plan& plan,
                  PlanLayer& layer);
void write_changes(const PlanLayer& layer, nlohmann::ordered_json& json);

/// Slots and router rows of a layer as many as the plan says. @throws InvalidInput
void check_slots(const JsonFields& fields, const Plan& plan, const PlanLayer& layer);

}  // namespace moetrim
