// A calibration as it is asked for: what can be refused before anything runs.
#pragma once

#include <vector>

#include "moetrim/calibrate.h"
#include "moetrim/forward.h"

namespace moetrim {

/// @throws UsageError or InvalidInput for what no run could do.
void check_request(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options);

/// How the layers run.
ForwardOptions calibration_forward(const Model& model, const CalibrateOptions& options);

}  // namespace moetrim
