// The tensors of the dequantised twin, and how each one's values lie.
#pragma once

#include <span>

#include "moetrim/export.h"

namespace moetrim::export_detail {

/// Fills `tensors` and `origins`, in the order of the pruned checkpoint's tensors.
/// @throws InvalidInput when a weight's values cannot be computed, or a quantised tensor has no place in the model.
void add_twin_tensors(TwinRequest& twin, std::span<const OutputTensor> pruned, const Plan& plan, Mtp mtp);

}  // namespace moetrim::export_detail
