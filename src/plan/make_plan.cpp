// Scores, a budget and protection to a plan: the same number of experts in every MoE layer.
#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/plan.h"
#include "plan/protect.h"
#include "plan/select.h"

namespace moetrim {
namespace {

using Protection = std::map<int, std::vector<bool>>;  // layer to [experts]

void check_scores(const Statistics& statistics, const Scores& scores) {
  const auto& manifest = statistics.manifest;
  if (scores.layers != manifest.moe_layers || scores.values.size() != scores.layers.size()) {
    throw InvalidInput(fmt::format("the scores are of other layers than the statistics: {} for {} MoE layers",
                                   scores.layers.size(), manifest.moe_layers.size()));
  }
  for (std::size_t i = 0; i < scores.values.size(); ++i) {
    const auto& values = scores.values[i];
    if (values.size() != static_cast<std::size_t>(manifest.experts)) {
      throw InvalidInput(fmt::format("layer {}: scores of {} experts, the statistics have {}", scores.layers[i],
                                     values.size(), manifest.experts));
    }
    if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) {
      throw InvalidInput(fmt::format("layer {}: a score is not a finite number", scores.layers[i]));
    }
  }
  const std::string of = scores.source.value("checkpoint_fingerprint", manifest.checkpoint_fingerprint);
  if (of != manifest.checkpoint_fingerprint) {
    throw InvalidInput(
        fmt::format("the scores are of checkpoint {}, the statistics of {}", of, manifest.checkpoint_fingerprint));
  }
}

void check_keep(const StatisticsManifest& manifest, const Protection& protection, int keep) {
  const int most = manifest.experts;
  if (keep > most) throw InvalidInput(fmt::format("keep {}: a layer has {} experts; keep at most {}", keep, most, most));
  int least = manifest.experts_per_token;
  std::string problem;
  if (keep < least) problem = fmt::format("a token is routed to {} experts", least);
  for (const auto& [layer, experts] : protection) {
    const int count = static_cast<int>(std::count(experts.begin(), experts.end(), true));
    if (count > keep && problem.empty()) problem = fmt::format("layer {} has {} protected experts", layer, count);
    least = std::max(least, count);
  }
  if (!problem.empty()) {
    throw InvalidInput(fmt::format("keep {}: {}; the smallest keep that works is {}", keep, problem, least));
  }
}

Protection by_layer(const std::vector<ProtectedExpert>& experts, int expert_count) {
  Protection protection;
  for (const auto& expert : experts) {
    auto& layer = protection[expert.layer];
    layer.resize(static_cast<std::size_t>(expert_count));
    layer[static_cast<std::size_t>(expert.expert)] = true;
  }
  return protection;
}

/// Tokens that reached each expert in the tasks that were scored: [experts].
std::vector<double> routed_tokens(const Statistics& statistics, const Scores& scores, const LayerStatistics& layer) {
  std::vector<double> routed(static_cast<std::size_t>(layer.experts), 0.0);
  for (int task = 0; task < layer.tasks; ++task) {
    const auto& name = statistics.manifest.tasks[static_cast<std::size_t>(task)].name;
    const bool scored = std::find(scores.tasks.begin(), scores.tasks.end(), name) != scores.tasks.end();
    if (!scores.tasks.empty() && !scored) continue;
    const auto of_task = layer.task_total(Stat::routed_count, task);
    for (std::size_t e = 0; e < routed.size(); ++e) routed[e] += of_task[e];
  }
  return routed;
}

PlanLayer plan_layer(int layer, std::vector<int> keep, const std::vector<double>& routed) {
  PlanLayer planned{.layer = layer, .keep = std::move(keep)};
  planned.unseen = static_cast<int>(std::count(routed.begin(), routed.end(), 0.0));
  planned.unseen_kept = static_cast<int>(std::count_if(
      planned.keep.begin(), planned.keep.end(), [&](int id) { return routed[static_cast<std::size_t>(id)] == 0; }));
  return planned;
}

nlohmann::ordered_json source_of(const Scores& scores, const PlanRequest& request, int experts, int keep, Variant variant) {
  nlohmann::ordered_json source = scores.source;
  source.erase("checkpoint_fingerprint");  // fields of the plan itself
  source.erase("family");
  if (request.keep.ratio) {
    source["rounding"] = {{"ratio", *request.keep.ratio}, {"experts", experts}, {"keep", keep}, {"rule", "nearest, half up"}};
  }
  if (!request.protect.empty()) {
    source["protect"] = request.protect;
    source["super_variant"] = variant_name(variant);
  }
  return source;
}

}  // namespace

Plan make_plan(const Statistics& statistics, const Scores& scores, const PlanRequest& request, Variant variant) {
  const auto& manifest = statistics.manifest;
  check_scores(statistics, scores);
  Plan plan;
  plan.method = scores.method;
  plan.variant = scores.variant;
  plan.checkpoint_fingerprint = manifest.checkpoint_fingerprint;
  plan.family = manifest.family;
  plan.experts = manifest.experts;
  plan.experts_per_token = manifest.experts_per_token;
  plan.keep = request.keep.of(manifest.experts);
  plan.protect = resolve_protection(statistics, request.protect, variant);
  auto protection = by_layer(plan.protect, manifest.experts);
  check_keep(manifest, protection, plan.keep);
  for (std::size_t i = 0; i < statistics.layers.size(); ++i) {
    const auto& layer = statistics.layers[i];
    plan.layers.push_back(plan_layer(layer.layer, best_experts(scores.values[i], protection[layer.layer], plan.keep),
                                     routed_tokens(statistics, scores, layer)));
  }
  plan.source = source_of(scores, request, plan.experts, plan.keep, variant);
  return plan;
}

}  // namespace moetrim
