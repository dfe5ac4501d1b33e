// Lists of module names in quantization_config that may name single experts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "rewrite/renumbering.h"

namespace moetrim {

/// Renumbers every list of module names in a `quantization_config`: entries of dropped experts go, entries of kept
/// experts get the new number, and everything else, patterns included, stays.
/// @throws InvalidInput naming the list and the entry that names an expert without its layer, or one that is not there.
void renumber_module_lists(nlohmann::ordered_json& quantization, std::int64_t experts, const Renumbering& numbers);

/// Patterns ("re:…") in those lists that hold a number after "experts": they may now mean another expert.
std::vector<std::string> suspicious_patterns(const nlohmann::ordered_json& quantization);

}  // namespace moetrim
