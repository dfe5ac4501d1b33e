// Gives every tensor of the checkpoint its place in the model.
#pragma once

#include "moetrim/family.h"

namespace moetrim {

/// Fills places, global and layer[].  @throws InvalidInput on a missing, doubled, extra or misshapen tensor.
void place_tensors(Model& model);

}  // namespace moetrim
