// Reads the rotary embedding from config.json, in either spelling.
#pragma once

#include "family/config_reader.h"
#include "moetrim/family.h"

namespace moetrim {

/// @param head_dim       values of a head, or its part that can rotate.
/// @param default_theta, default_part  theta and partial_rotary_factor where config names none.
/// @throws InvalidInput for an unknown kind of scaling or a missing factor.
Rope read_rope(const ConfigReader& config, std::int64_t head_dim, double default_theta, double default_part);

/// What DeepSeek multiplies query-key products with under yarn: mscale squared (arXiv 2405.04434; 1 without mscale_all_dim).
double latent_rope_scale(const ConfigReader& config);

}  // namespace moetrim
