// Gives every tensor of the checkpoint its place in the model.
#pragma once

#include <string_view>

#include "moetrim/family.h"

namespace moetrim {

/// Scales of a quantised key-value cache.
bool is_cache_scale(std::string_view name);
/// Tensors that no weight depends on: those scales, and rope frequencies in old checkpoints.
bool is_derived(std::string_view name);

/// Fills places, global and layer[].  @throws InvalidInput on a missing, doubled, extra or misshapen tensor.
void place_tensors(Model& model);

}  // namespace moetrim
