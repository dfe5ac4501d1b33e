// Several tasks in one decision: statistics side by side, scores of tasks added up or united, what only another task uses
// subtracted, and the best of a task. Pure functions; docs/tasks.md has the formulas.
//
// N(s): scores divided by the sum of their magnitudes, of experts per layer, of atomic experts over all layers; zeros stay zeros.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "moetrim/score.h"
#include "moetrim/statistics.h"

namespace moetrim {

/// Reads folders that calibrate wrote, with their tasks side by side in the order of the folders; without vectors and rows.
/// @param atoms  also read second-order statistics.
/// @throws InvalidInput as Statistics::read and StatisticsMerge do, naming the folder; and for a task that two folders have.
Statistics read_beside(const std::vector<std::filesystem::path>& folders, bool atoms);

/// Scores each task alone. @param tasks  which, in that order; empty: all. @throws as score() does
std::vector<Scores> score_each(const Statistics& statistics, const MethodMix& method, const ScoreOptions& options,
                               const std::vector<std::string>& tasks = {});

/// sum over i of weights[i] N(parts[i]): what score() gives for several tasks.
/// @param weights  one per part, above 0; what the parts' own tasks weigh is multiplied with it.
/// @throws InvalidInput when parts are of other methods, layers, sizes or checkpoints; UsageError for bad weights.
Scores weighted_sum(std::span<const Scores> parts, std::span<const double> weights);

/// The union of what the tasks need. In each group of each layer rank_t(e) is the place of expert e, from 1, in task t's own
/// order: by its score, ties to the lower id, experts that score 0 left out. Experts are ordered by the least
/// rank_t(e) / weights[t] over the tasks, ties by weighted_sum(), then to the lower id; those without a rank come last. With equal
/// weights the best K n experts hold the best n of each of K tasks, and the best |union of those| are exactly that union.
/// @param groups  of contiguous experts that keep alike (StatisticsManifest::groups), 1: none.
/// @return scores that are places: E / groups for the first of a group, 1 for the last.
/// @throws as weighted_sum(); UsageError for scores of atomic experts, which compete over layers.
Scores united(std::span<const Scores> tasks, std::span<const double> weights, int groups = 1);

/// N(wanted) - sum over i of lambdas[i] N(unwanted[i]): what only the unwanted tasks use goes first.
/// @param lambdas  one per unwanted, above 0.
/// @throws as weighted_sum()
Scores without(const Scores& wanted, std::span<const Scores> unwanted, std::span<const double> lambdas);

/// The `count` experts of every group with the highest scores, ties to the lower id; of those that score 0 none.
/// @return per layer, ids ascending. @throws UsageError for scores of atomic experts.
std::vector<std::vector<int>> best_of(const Scores& scores, int count, int groups = 1);

}  // namespace moetrim
