// Which layers are MoE, which attend how.
#pragma once

#include "family/config_reader.h"
#include "moetrim/family.h"

namespace moetrim {

/// Multi-token-prediction blocks of which the checkpoint has tensors.
/// @throws InvalidInput when there are more than config.json says.
std::int64_t count_mtp_layers(const Model& model, const ConfigReader& config);

/// Experts of these blocks, which may be more than config.json says of the layers.
std::int64_t count_mtp_experts(const Model& model);

/// Fills Model::layer but for its tensors.
void set_layer_kinds(Model& model, const ConfigReader& config);

}  // namespace moetrim
