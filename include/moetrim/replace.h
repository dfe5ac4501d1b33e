// Replacing experts by constants: which, by MoNE's score, and the plan. They keep their router rows, so that routing stays
// as it was, and put out their mean output, which a bias of the down projection can hold.
//
// Source: MoNE (arXiv 2507.00390; the ranking of its published code). An expert that is little used and puts out much the
// same whatever the token is missed least: its score is the square root of its outputs' variance, all channels added up,
// times the gate weight that it had per counted token,
//   sqrt((sum |f|^2 - |sum f|^2 / n) / (n - 1)) * (sum g) / T;  0 with fewer than two routed tokens.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "moetrim/plan.h"
#include "moetrim/score.h"
#include "moetrim/vectors.h"

namespace moetrim {

/// MoNE's scores of all experts. Several tasks are mixed as score() mixes them.
/// @param vectors  gives what calibration recorded of a layer on request; one layer is in memory at a time.
/// @throws InvalidInput for an unknown task, or when `vectors` does
Scores mone_scores(const Statistics& statistics, const std::function<ExpertVectors(int layer)>& vectors,
                   const std::vector<std::pair<std::string, double>>& task_weights = {});

/// Refuses a family whose experts have no bias in their down projection. @throws InvalidInput naming it
void check_replace(const StatisticsManifest& manifest);

/// Makes a plan that drops experts one that keeps them all and replaces those by constants.
/// @param width  the experts' atomic experts: replaced ones lose all of theirs, and what is left of them on disk is the
///               bias; the new checkpoint loads with our own class. 0: they are zeros, and the new checkpoint is a plain one
///               of the old size.
void replace_dropped(Plan& plan, int width);

}  // namespace moetrim
