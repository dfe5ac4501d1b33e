// Holds the shape and type of every placed tensor against the model's sizes.
#pragma once

#include "moetrim/family.h"

namespace moetrim {

/// @throws InvalidInput naming the first tensor that does not fit, or a part of a quantised weight without the others.
void check_weights(const Model& model);

}  // namespace moetrim
