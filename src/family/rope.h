// Reads the rotary embedding from config.json, in either spelling.
#pragma once

#include "family/config_reader.h"
#include "moetrim/family.h"

namespace moetrim {

/// @param default_theta  where config names none.
/// @throws InvalidInput for an unknown kind of scaling or a missing factor.
Rope read_rope(const ConfigReader& config, std::int64_t head_dim, double default_theta);

}  // namespace moetrim
