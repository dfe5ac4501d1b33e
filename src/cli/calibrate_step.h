// The first step of what a recipe runs.
#pragma once

#include <filesystem>
#include <vector>

#include "cli/stages.h"

namespace moetrim::cli {

/// Calibrates into `folder`, unless it holds the same calibration already; another one there goes.
void calibrate_unless_done(const Session& session, const Model& model, const std::vector<Task>& tasks,
                           const CalibrateOptions& options, const std::filesystem::path& folder);

}  // namespace moetrim::cli
