// What of the statistics counts for a plan, private to the stage.
#pragma once

#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// @throws InvalidInput when the scores are not of these statistics, or not all finite.
void check_scores(const Statistics& statistics, const Scores& scores);

/// A plan of the checkpoint that was measured, without layers.
Plan plan_head(const StatisticsManifest& manifest);
/// 0, 1, 2, …
std::vector<int> all_experts(int count);

/// Notes how many experts no token reached, and how many slots have one of those. @param routed  [experts]
void count_unseen(const std::vector<double>& routed, PlanLayer& layer);

/// How much each task of the statistics weighs in the scores, [tasks]; 0: it was not scored.
std::vector<double> task_weights(const StatisticsManifest& manifest, const Scores& scores);

/// Tokens that reached each expert in the tasks that were scored: [experts].
std::vector<double> routed_tokens(const LayerStatistics& layer, const std::vector<double>& weights);

}  // namespace moetrim
