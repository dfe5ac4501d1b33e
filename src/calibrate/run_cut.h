// How a calibration's tokens are cut into groups: by the memory, and for the reverse sweep by the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "calibrate/boundaries.h"
#include "forward/memory_plan.h"
#include "moetrim/calibrate.h"

namespace moetrim {

/// A run that goes on keeps its cut.
struct RunCut {
  std::int64_t group_tokens = 0;  ///< of a token group, at most
  BoundaryPlan boundaries = {};   ///< step 0 without second order
};

MemoryPlan calibration_memory(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options);

/// What a sequential calibration holds of a block's experts between its two runs: all, or what has room beside the tokens.
std::uint64_t held_expert_bytes(const Model& model, const MemoryPlan& plan, std::int64_t tokens);

/// @throws OutOfResources when a demonstration does not fit the memory or the disk.
RunCut cut_run(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
               const std::filesystem::path& output);

}  // namespace moetrim
