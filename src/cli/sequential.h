// Sequential calibration: the options of a plan as a choice that is made layer by layer.
#pragma once

#include "cli/stages.h"
#include "moetrim/calibrate.h"

namespace moetrim::cli {

/// Whether one layer's statistics are enough to choose its experts with these options.
/// @throws UsageError naming the option that asks for more: atomic experts, merging, budgets over all layers, other
///         statistics.
void check_sequential(const PlanFlags& flags);

/// Makes the calibration sequential: from every layer stays what `plan` with these options keeps of it.
/// @param options  all else that the calibration is asked for.
/// @throws UsageError, InvalidInput for what any layer would refuse, before anything is measured.
void make_sequential(const PlanFlags& flags, const Model& model, const std::vector<Task>& tasks, CalibrateOptions& options);

}  // namespace moetrim::cli
