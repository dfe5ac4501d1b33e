// Scores, a budget and protection to a plan: as many experts in every MoE layer, or what was listed, and in every group of it;
// then, with scores of atomic experts, what stays of each.
#include <algorithm>
#include <iterator>
#include <map>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/plan.h"
#include "plan/choose_atoms.h"
#include "plan/cost.h"
#include "plan/legal_keep.h"
#include "plan/measured.h"
#include "plan/protect.h"
#include "plan/router_drift.h"
#include "plan/select.h"

namespace moetrim {
namespace {

using Protection = std::map<int, std::vector<bool>>;  // layer to [experts]

Protection by_layer(const std::vector<ProtectedExpert>& experts, int expert_count) {
  Protection protection;
  for (const auto& expert : experts) {
    auto& layer = protection[expert.layer];
    layer.resize(static_cast<std::size_t>(expert_count));
    layer[static_cast<std::size_t>(expert.expert)] = true;
  }
  return protection;
}

/// Protected experts of every group that has any.
std::vector<ProtectedCount> count_protected(const Protection& protection, int experts, int groups) {
  const int size = experts / groups;
  std::vector<ProtectedCount> counts;
  for (const auto& [layer, flags] : protection) {
    for (int group = 0; group < groups; ++group) {
      const auto begin = flags.begin() + group * size;
      const int count = static_cast<int>(std::count(begin, begin + size, true));
      if (count > 0) counts.push_back({.layer = layer, .group = group, .count = count});
    }
  }
  return counts;
}

/// The most experts that stay: what was asked for, or all.
KeepBudget keep_or_all(const KeepBudget& keep, int experts) {
  return keep.empty() ? KeepBudget{.experts = experts, .ratio = {}} : keep;
}

/// Experts of every layer. A plan over atomic experts spends its bytes on those, any other on experts.
int choose_keep(const StatisticsManifest& manifest, const PlanRequest& request, const LegalCounts& counts,
                const std::vector<ProtectedCount>& crowds, bool atoms) {
  int keep = legal_keep(router_limits(manifest), keep_or_all(request.keep, manifest.experts), request.regroup, crowds);
  if (atoms || !request.budget_bytes) return keep;
  int least = counts.least;
  for (const auto& crowd : crowds) least = std::max(least, counts.step * crowd.count);
  const auto bytes = [&](int kept) {
    return expected_bytes(manifest, static_cast<std::int64_t>(manifest.moe_layers.size()) * (manifest.experts - kept), 0);
  };
  while (keep > least && !bytes_fit(bytes(keep), *request.budget_bytes)) keep -= counts.step;
  if (bytes_fit(bytes(keep), *request.budget_bytes)) return keep;
  throw InvalidInput(fmt::format("budget-bytes {} is below the {} of the smallest checkpoint; at least {} experts must stay in "
                                 "every layer",
                                 *request.budget_bytes, bytes(keep), keep));
}

/// Each MoE layer's own number.
std::vector<int> listed_counts(const StatisticsManifest& manifest, const PlanRequest& request,
                               const std::vector<ProtectedCount>& crowds) {
  const auto& layers = manifest.moe_layers;
  if (request.keep_by_layer.size() != layers.size()) {
    throw InvalidInput(fmt::format("keep by layer: {} numbers for {} MoE layers; give one for each",
                                   request.keep_by_layer.size(), layers.size()));
  }
  const RouterLimits limits = router_limits(manifest);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    std::vector<ProtectedCount> of_layer;
    std::copy_if(crowds.begin(), crowds.end(), std::back_inserter(of_layer),
                 [&](const ProtectedCount& crowd) { return crowd.layer == layers[l]; });
    try {
      legal_keep(limits, {.experts = request.keep_by_layer[l], .ratio = {}}, request.regroup, of_layer);
    } catch (const InvalidInput& problem) {
      throw InvalidInput(fmt::format("keep by layer: layer {}: {}", layers[l], problem.what()));
    }
  }
  return request.keep_by_layer;
}

/// Experts of each MoE layer.
std::vector<int> choose_counts(const StatisticsManifest& manifest, const PlanRequest& request, const LegalCounts& counts,
                               const std::vector<ProtectedCount>& crowds, bool atoms) {
  if (!request.keep_by_layer.empty()) return listed_counts(manifest, request, crowds);
  return std::vector<int>(manifest.moe_layers.size(), choose_keep(manifest, request, counts, crowds, atoms));
}

std::int64_t dropped_experts(const Plan& plan) {
  return static_cast<std::int64_t>(plan.layers.size()) * plan.experts - kept_experts(plan);
}

/// Listed numbers leave no expert to give up for a budget.
void check_bytes(const StatisticsManifest& manifest, const PlanRequest& request, const Plan& plan) {
  if (request.keep_by_layer.empty() || !request.budget_bytes) return;
  const std::int64_t bytes = expected_bytes(manifest, dropped_experts(plan), 0);
  if (bytes_fit(bytes, *request.budget_bytes)) return;
  throw InvalidInput(fmt::format("budget-bytes {} is below the {} of a checkpoint with so many experts; list fewer",
                                 *request.budget_bytes, bytes));
}

nlohmann::ordered_json rounding_of(const Plan& plan, double ratio, const LegalCounts& counts) {
  const std::string rule =
      counts.step == 1 ? "nearest, half up"
                       : fmt::format("nearest multiple of {}, half up, at least {}", counts.step, counts.least);
  return {{"ratio", ratio}, {"experts", plan.experts}, {"keep", plan.keep}, {"rule", rule}};
}

nlohmann::ordered_json source_of(const Scores& scores, const PlanRequest& request, const Plan& plan, const LegalCounts& counts,
                                 Variant variant) {
  nlohmann::ordered_json source = scores.source;
  source.erase("checkpoint_fingerprint");  // fields of the plan itself
  source.erase("family");
  if (request.keep.ratio) source["rounding"] = rounding_of(plan, *request.keep.ratio, counts);
  if (request.budget_bytes) source["budget_bytes"] = *request.budget_bytes;
  if (!request.protect.empty()) {
    source["protect"] = request.protect;
    source["super_variant"] = variant_name(variant);
  }
  if (const auto drift = router_drift(plan)) {
    source["router_drift"] = {{"mean_kept_mass", drift->mean_mass},
                              {"least_kept_mass", drift->least_mass},
                              {"least_layer", drift->least_layer}};
  }
  return source;
}

/// Everything but the layers.
Plan head_of(const StatisticsManifest& manifest, const Scores& scores, const PlanRequest& request) {
  Plan plan = plan_head(manifest);
  plan.method = scores.method;
  plan.variant = scores.variant;
  plan.regroup = request.regroup;
  plan.correct_drift = request.correct_drift;
  return plan;
}

}  // namespace

Plan make_plan(const Statistics& statistics, const Scores& scores, const PlanRequest& request, Variant variant,
               const Scores* experts) {
  const auto& manifest = statistics.manifest;
  const bool atoms = scores.grain == Grain::atom;
  check_scores(statistics, scores);
  if (experts) check_scores(statistics, *experts);
  if (experts && experts->grain == Grain::atom) {
    throw UsageError(fmt::format("{} scores atomic experts and cannot choose experts", experts->method));
  }
  check_limits(request, scores.method, scores.grain, experts != nullptr);
  const RouterLimits limits = router_limits(manifest);
  const LegalCounts counts = legal_counts(limits, request.regroup);
  if (request.correct_drift) check_correct_drift(limits);
  Plan plan = head_of(manifest, scores, request);
  plan.protect = resolve_protection(statistics, request, variant);
  auto protection = by_layer(plan.protect, plan.experts);
  const auto keeps = choose_counts(manifest, request, counts, count_protected(protection, plan.experts, counts.step), atoms);
  const auto [fewest, most] = std::minmax_element(keeps.begin(), keeps.end());
  plan.keep = *most;
  if (*fewest != *most) plan.counts = LayerCounts::listed;
  const auto weights = task_weights(manifest, scores);
  const Scores* choosing = atoms ? experts : &scores;
  std::vector<std::vector<double>> routed;
  for (std::size_t i = 0; i < statistics.layers.size(); ++i) {
    const auto& layer = statistics.layers[i];
    routed.push_back(routed_tokens(layer, weights));
    auto keep = choosing ? best_experts(choosing->values[i], protection[layer.layer], keeps[i], counts.step)
                         : all_experts(plan.experts);
    plan.layers.push_back({.layer = layer.layer, .keep = std::move(keep)});
    count_unseen(routed.back(), plan.layers.back());
    if (limits.drifts()) plan.layers.back().kept_mass = kept_mass(layer, plan.layers.back().keep, weights);
  }
  if (request.correct_drift) check_kept_mass(plan);
  plan.source = source_of(scores, request, plan, counts, variant);
  if (manifest.settings.contains("sequential")) plan.source["sequential"] = manifest.settings.at("sequential");
  if (atoms && experts) plan.source["expert_method"] = experts->method;
  if (!atoms) check_bytes(manifest, request, plan);
  if (atoms) {
    choose_atoms(manifest, scores, request, routed, plan);
  } else if (has_sizes(manifest)) {
    plan.source["expected"] = {{"bytes", expected_bytes(manifest, dropped_experts(plan), 0)}};
  }
  return plan;
}

}  // namespace moetrim
