// How soon the kept set settles as more demonstrations are measured.
#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/plan.h"
#include "plan/legal_keep.h"
#include "plan/select.h"

namespace moetrim {
namespace {

using KeptSets = std::vector<std::vector<int>>;  // [layers][keep], ascending

KeptSets kept_sets(const Scores& scores, int keep, int groups) {
  KeptSets sets;
  for (const auto& values : scores.values) sets.push_back(best_experts(values, {}, keep, groups));
  return sets;
}

double mean_overlap(const KeptSets& a, const KeptSets& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += overlap(a[i], b[i]);
  return sum / static_cast<double>(a.size());
}

}  // namespace

std::vector<double> convergence(const Statistics& statistics, const MethodMix& method, const ScoreOptions& options,
                                const KeepBudget& budget,
                                const std::vector<std::pair<std::string, double>>& task_weights, bool regroup) {
  if (const ScoringMethod* part = method.second_order()) {
    throw InvalidInput(
        fmt::format("convergence: {} needs second-order statistics, which are not kept per slice", part->name));
  }
  const RouterLimits limits = router_limits(statistics.manifest);
  const int keep = legal_keep(limits, budget, regroup);
  const int groups = legal_counts(limits, regroup).step;
  const KeptSets all = kept_sets(score(statistics, method, options, task_weights), keep, groups);
  std::vector<double> overlaps;
  for (int slices = 1; slices <= kSlices; ++slices) {
    Statistics first;
    first.manifest = statistics.manifest;
    for (const auto& layer : statistics.layers) first.layers.push_back(layer.first_slices(slices));
    overlaps.push_back(mean_overlap(kept_sets(score(first, method, options, task_weights), keep, groups), all));
  }
  return overlaps;
}

}  // namespace moetrim
