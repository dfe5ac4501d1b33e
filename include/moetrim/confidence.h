// How sure a kept set is: what other demonstrations of the same kind might have decided.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// An expert that some resamples keep and others do not.
struct UncertainExpert {
  int expert = 0;
  double share = 0;   ///< of the resamples that keep it
  bool kept = false;  ///< by all slices together
};

/// Overlap is that of convergence(): Jaccard with the kept set from all slices, mean over the layers.
struct KeptSetConfidence {
  int slices = 0;      ///< of the task that has the fewest with counted tokens
  double overlap = 0;  ///< mean over the resamples
  double lower = 0, upper = 0;  ///< 2.5th and 97.5th percentile of the resamples, linear interpolation
  struct Layer {
    int layer = 0;  ///< absolute id
    std::vector<UncertainExpert> uncertain;  ///< kept by more than 5% and less than 95% of the resamples; ascending
  };
  std::vector<Layer> layers;
};

/// Bootstrap: for every task as many of its slices with counted tokens are drawn, with replacement, as it has; the kept set
/// is decided again from those. Protection is left out. There are eight slices at most, so intervals are coarse.
/// @return nothing where a task has counted tokens in one slice only.
/// @throws as convergence()
std::optional<KeptSetConfidence> kept_set_confidence(const Statistics& statistics, const MethodMix& method,
                                                     const ScoreOptions& options, const KeepBudget& keep,
                                                     const std::vector<std::pair<std::string, double>>& task_weights,
                                                     bool regroup, int resamples, std::uint64_t seed);

}  // namespace moetrim
