// A plan that is not yet written, as a restriction of the router.
#pragma once

#include "moetrim/forward.h"
#include "moetrim/plan.h"

namespace moetrim {

/// Which experts each layer may route to under the plan.
/// @throws InvalidInput when the plan is of another model.
ExpertMask mask_of(const Model& model, const Plan& plan);

}  // namespace moetrim
