// What the new checkpoint is expected to cost, private to the stage.
#pragma once

#include <cstdint>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// Whether the statistics say what experts weigh; those from before sizes were recorded do not.
bool has_sizes(const StatisticsManifest& manifest);
/// Of the new checkpoint's tensors: all, less the dropped experts, less the atomic experts removed from kept ones.
/// @throws InvalidInput without sizes.
std::int64_t expected_bytes(const StatisticsManifest& manifest, std::int64_t dropped_experts, std::int64_t removed_atoms);

/// Whether that is within a budget; a nonsensical negative size is.
bool bytes_fit(std::int64_t bytes, std::uint64_t budget);

/// Multiply-adds of the routed experts on the measured tokens.
class ExpertFlops {
 public:
  /// @param routed  [layers][experts] tokens; where none was routed in all, or to the kept experts of a layer, they are taken
  ///                to be used alike
  ExpertFlops(const std::vector<PlanLayer>& layers, const std::vector<std::vector<double>>& routed, int width);
  /// As a share of those of the whole model.
  /// @param widths  of every kept expert, layer by layer.
  double share(const std::vector<int>& widths) const;

 private:
  std::vector<double> weights_;  ///< of an atomic expert of every kept expert; 1 for all together
};

}  // namespace moetrim
