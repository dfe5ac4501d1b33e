// What a plan makes of a layer's experts, slot by slot, and the plan that keeps them all.

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/plan.h"
#include "moetrim/whole_experts.h"
#include "plan/measured.h"
#include "plan/slots.h"

namespace moetrim {

bool merges(const Plan& plan) {
  return std::any_of(plan.layers.begin(), plan.layers.end(), [](const PlanLayer& layer) { return !layer.merge.empty(); });
}

std::int64_t kept_experts(const Plan& plan) {
  std::int64_t sum = 0;
  for (const PlanLayer& layer : plan.layers) sum += std::ssize(layer.keep);
  return sum;
}

std::string keep_text(const Plan& plan) {
  if (plan.counts == LayerCounts::equal) return std::to_string(plan.keep);
  const auto fewer = [](const PlanLayer& a, const PlanLayer& b) { return a.keep.size() < b.keep.size(); };
  const auto [least, most] = std::minmax_element(plan.layers.begin(), plan.layers.end(), fewer);
  if (least->keep.size() == most->keep.size()) return std::to_string(most->keep.size());
  return fmt::format("{} to {}", least->keep.size(), most->keep.size());
}

void check_equal_counts(const Plan& plan, std::string_view what) {
  if (plan.counts == LayerCounts::equal) return;
  throw InvalidInput(fmt::format("{}: the plan keeps {} experts, by layer; give every layer the same number", what,
                                 keep_text(plan)));
}

bool changes_values(const Plan& plan) {
  if (plan.noise > 0 || plan.experts_per_token_after > 0) return true;
  return std::any_of(plan.layers.begin(), plan.layers.end(), [](const PlanLayer& layer) {
    return !layer.merge.empty() || !layer.scale.empty() || !layer.silence.empty() || !layer.constant.empty() ||
           !layer.smooth.empty();
  });
}

std::string slots_problem(const Plan& plan, const PlanLayer& layer, int experts) {
  std::vector<bool> seen(static_cast<std::size_t>(experts), false);
  for (const int expert : layer.keep) {
    if (expert < 0 || expert >= experts) {
      return fmt::format("layer {} keeps expert {}, expected 0 to {}", layer.layer, expert, experts - 1);
    }
    if (plan.order == SlotOrder::ascending && seen[static_cast<std::size_t>(expert)]) {
      return fmt::format("layer {} keeps expert {} twice", layer.layer, expert);
    }
    seen[static_cast<std::size_t>(expert)] = true;
  }
  return {};
}

std::string_view beyond_whole_experts(const Plan& plan) {
  const auto any = [&](auto member) {
    return std::ranges::any_of(plan.layers, [&](const PlanLayer& layer) { return !(layer.*member).empty(); });
  };
  if (any(&PlanLayer::merge)) return "merges experts";
  if (plan.width != 0 || any(&PlanLayer::atoms)) return "chooses atomic experts";
  if (any(&PlanLayer::scale)) return "scales experts";
  if (any(&PlanLayer::silence)) return "silences experts";
  if (any(&PlanLayer::constant)) return "replaces experts by constants";
  if (any(&PlanLayer::smooth)) return "smooths hidden channels";
  if (plan.noise > 0) return "adds noise to copies of experts";
  return {};
}

std::vector<int> router_rows(const Plan& plan, const PlanLayer& layer) {
  if (plan.router != MergedRouter::map) return layer.keep;
  std::vector<int> rows = layer.keep;
  for (const MergeGroup& group : layer.merge) {
    for (const int member : group.members) {
      if (member != group.into) rows.push_back(member);
    }
  }
  std::sort(rows.begin(), rows.end());
  return rows;
}

Plan plan_head(const StatisticsManifest& manifest) {
  Plan plan;
  plan.variant = variant_name(Variant::executed);
  plan.checkpoint_fingerprint = manifest.checkpoint_fingerprint;
  plan.family = manifest.family;
  plan.experts = plan.keep = manifest.experts;
  plan.experts_per_token = manifest.experts_per_token;
  if (manifest.groups.count > 1) plan.groups = manifest.groups;  // one group is none, whatever its rule
  return plan;
}

std::vector<int> all_experts(int count) {
  std::vector<int> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

Plan whole_plan(const StatisticsManifest& manifest) {
  Plan plan = plan_head(manifest);
  plan.method = "whole";
  for (const int layer : manifest.moe_layers) plan.layers.push_back({.layer = layer, .keep = all_experts(manifest.experts)});
  return plan;
}

void check_plan_of(const Plan& plan, const StatisticsManifest& manifest) {
  std::vector<int> planned;
  for (const PlanLayer& layer : plan.layers) planned.push_back(layer.layer);
  if (plan.checkpoint_fingerprint == manifest.checkpoint_fingerprint && plan.experts == manifest.experts &&
      planned == manifest.moe_layers) {
    return;
  }
  throw InvalidInput(fmt::format("the plan is of checkpoint {}, the statistics of {}, or their layers differ",
                                 plan.checkpoint_fingerprint, manifest.checkpoint_fingerprint));
}

}  // namespace moetrim
