// How much the loss is expected to change when an atomic expert goes, from its sums; private to the stage.
//
// HEAPr, after optimal brain surgery in output space: without atom k the output of its expert changes by x w (x the atom's
// value, w its column of down_proj), and the loss by about half of its square against the Fisher matrix of the gradient g
// there, (x wT g)^2 / 2 = (x c)^2 / 2 with c = wT g. The half is left out. What differs is how tokens are added up.
#pragma once

#include <vector>

#include "moetrim/score.h"

namespace moetrim {

enum class Importance {
  mean,   ///< A B / n^2: the mean of x^2 times the mean of c^2, both over the routed tokens; HEAPr as published
  sum,    ///< A B / n: the same for all routed tokens together, as the loss of a task sees them
  joint,  ///< J: the sum of x^2 c^2, without the assumption that x and c do not depend on each other
};

/// Of the mean loss: the gradient of a sum over P predicted tokens is divided by P, its square by P^2.
/// @return [experts, width]; 0 for an expert that no token reached.
std::vector<double> atom_importance(Importance importance, const StatisticsManifest& manifest, const AtomStatistics& atoms,
                                    int task);
/// Summed over an expert's atoms. @return [experts]
std::vector<double> expert_importance(Importance importance, const StatisticsManifest& manifest, const AtomStatistics& atoms,
                                      int task);

/// One task's values of `taylor` or `fisher` with the slices combined, divided by `divisor`; zeros where that is zero.
/// @param values  [tasks, kSlices, experts] @return [experts]
std::vector<double> divided_total(const AtomStatistics& atoms, const std::vector<double>& values, int task, double divisor);

/// P of a task.
double predicted_tokens(const StatisticsManifest& manifest, int task);

}  // namespace moetrim
