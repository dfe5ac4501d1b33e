// Atomic experts of a plan that merges.
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/merging.h"
#include "plan/choose_atoms.h"
#include "plan/measured.h"

namespace moetrim {
namespace {

/// A merged expert runs on the tokens of all its members.
std::vector<double> merged_tokens(const PlanLayer& layer, std::vector<double> routed) {
  for (const MergeGroup& group : layer.merge) {
    double sum = 0;
    for (const int member : group.members) sum += std::exchange(routed[static_cast<std::size_t>(member)], 0.0);
    routed[static_cast<std::size_t>(group.into)] = sum;
  }
  return routed;
}

}  // namespace

void check_slim(const MergeRequest& merge) {
  if (merge.router == MergedRouter::duplicate) {
    throw UsageError("router duplicate: copies of merged experts are there to compare with, and are not slimmed; use "
                     "--router centroid or map, or leave out what chooses atomic experts");
  }
  if (merge.counts == MergeCounts::adaptive) {
    throw UsageError("merge-counts adaptive: atomic experts are chosen among equally many experts in every layer; leave one "
                     "out");
  }
}

void slim_plan(Plan& plan, const Statistics& statistics, const Scores& scores, PlanRequest request) {
  check_scores(statistics, scores);
  if (scores.grain != Grain::atom) throw UsageError(fmt::format("{} scores experts, not atomic experts", scores.method));
  request.keep = {};
  check_limits(request, scores.method, scores.grain, false);
  const auto weights = task_weights(statistics.manifest, scores);
  std::vector<std::vector<double>> routed;
  for (std::size_t l = 0; l < plan.layers.size(); ++l) {
    routed.push_back(merged_tokens(plan.layers[l], routed_tokens(statistics.layers[l], weights)));
  }
  plan.source["expert_method"] = plan.method;
  plan.method = scores.method;
  plan.variant = scores.variant;
  if (request.budget_bytes) plan.source["budget_bytes"] = *request.budget_bytes;
  if (scores.source.contains("library")) plan.source["library"] = scores.source.at("library");
  plan.source["seed"] = scores.source.value("seed", std::uint64_t{0});
  choose_atoms(statistics.manifest, scores, request, routed, plan);
}

}  // namespace moetrim
