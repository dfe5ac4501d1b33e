// Smoothing: scales move from the inputs of an MoE block to the weights that read them, so that both are easier to quantise.
// The function stays the same: what the norm before the block is divided by, router, gate and up projections are multiplied
// by.
//
// Source: EAQuant (arXiv 2506.13329). One factor per hidden channel c and layer, for all experts and the router at once,
// since all read the same norm:  s_c = (max over experts and router of the largest |input|)^alpha / (largest |weight|)^(1 -
// alpha).
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "moetrim/plan.h"
#include "moetrim/vectors.h"

namespace moetrim {

enum class SmoothRounding {
  power_of_two,  ///< factors are powers of two: bf16 weights keep every bit
  none,
};
/// "power-of-two", "none". @throws UsageError
SmoothRounding smooth_rounding_from_name(std::string_view name);

struct SmoothRequest {
  double alpha = 0.5;   ///< in [0, 1]: how much of the inputs' range goes to the weights
  SmoothRounding rounding = SmoothRounding::power_of_two;
};
/// @throws UsageError
void check_smooth_request(const SmoothRequest& request);

/// A layer's factors, all tasks together. A channel that no token or no weight used is left alone: 1. [H]
std::vector<float> smoothing_factors(const ExpertVectors& vectors, const SmoothRequest& request);

/// Puts factors into every layer of a plan, over those that it had. A layer's vectors are in memory one at a time.
/// @param folder  statistics of `calibrate --statistics vectors`, `manifest` theirs
/// @throws InvalidInput when the plan is of another checkpoint or has layers that were not measured; as read_vectors
void add_smoothing(Plan& plan, const std::filesystem::path& folder, const StatisticsManifest& manifest,
                   const SmoothRequest& request);

}  // namespace moetrim
