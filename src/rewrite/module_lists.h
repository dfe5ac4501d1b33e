// Lists of module names in quantization_config that may name single experts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "rewrite/renumbering.h"

namespace moetrim {

/// Whether a tensor or module lies in a multi-token-prediction block, by its name.
bool names_mtp(std::string_view name, const Model& model);

/// Renumbers every list of module names in a `quantization_config`: entries of dropped experts and of blocks that are
/// dropped go, entries of kept experts get the new number, and everything else, patterns included, stays.
/// @throws InvalidInput naming the list and the entry that names an expert without its layer, or one that is not there.
void renumber_module_lists(nlohmann::ordered_json& quantization, const Model& model, const Renumbering& numbers, Mtp mtp);

/// Patterns ("re:…") in those lists that hold a number after "experts": they may now mean another expert.
std::vector<std::string> suspicious_patterns(const nlohmann::ordered_json& quantization);

}  // namespace moetrim
