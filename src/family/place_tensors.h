// Gives every tensor of the checkpoint its place in the model.
#pragma once

#include <string_view>

#include "moetrim/family.h"

namespace moetrim {

/// Tensors that no weight depends on: caches of rope frequencies in old checkpoints, and scales of a quantised key-value cache.
bool is_derived(std::string_view name);

/// Fills places, global and layer[].  @throws InvalidInput on a missing, doubled, extra or misshapen tensor.
void place_tensors(Model& model);

}  // namespace moetrim
