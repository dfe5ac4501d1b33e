// Commands that several processes do together, started by torchrun or srun.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "moetrim/calibrate.h"
#include "moetrim/distributed.h"

namespace moetrim::cli {

/// Runs `work` as one of the ranks, or alone with a null pointer. Only rank 0 prints and notes; every rank reports its own errors.
/// When a rank is lost, the others stop at the next point from which they can go on, after 20 seconds wherever they are.
void with_ranks(Session& session, const std::function<void(RankGroup*)>& work);

/// A rank's share of the demonstrations, and of the machine unless it was told: cores, memory and the GPU.
void take_share(RunOptions& options, const RankPlace& place);

/// Whether this process reports the result.
inline bool reports(const RankGroup* ranks) { return ranks == nullptr || ranks->place().rank == 0; }

/// calibrate() by all ranks: each measures its share in a folder beside `output`, from which a killed run goes on; rank 0 then
/// writes `output`. @return the manifest, on rank 0.
std::optional<StatisticsManifest> calibrate_by_ranks(RankGroup& ranks, const Model& model, const std::vector<Task>& tasks,
                                                     CalibrateOptions options, const std::filesystem::path& output);

}  // namespace moetrim::cli
