// The first experts of a ranking, switched off or strengthened.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/switching.h"
#include "plan/legal_keep.h"
#include "plan/measured.h"
#include "plan/router_drift.h"

namespace moetrim {
namespace {

using Chosen = std::map<int, std::vector<int>>;  // absolute layer to experts, ascending

int groups_of(const Plan& plan) { return plan.regroup ? 1 : plan.groups.count; }
int group_of(const Plan& plan, int expert) { return expert * groups_of(plan) / plan.experts; }

RouterLimits limits_after(const StatisticsManifest& manifest, const Plan& plan) {
  RouterLimits limits = router_limits(manifest);
  if (plan.experts_per_token_after > 0) limits.experts_per_token = plan.experts_per_token_after;
  return limits;
}

void check_request(const SwitchRequest& request) {
  const auto& choice = request.choice;
  if ((choice.top > 0) == (choice.per_layer > 0) || choice.top < 0 || choice.per_layer < 0) {
    throw UsageError("switch: say how many experts: --top N of all layers, or --per-layer N of each");
  }
  if (request.action != SwitchAction::strengthen) return;
  if (std::isfinite(request.factor) && request.factor >= 0 && request.factor != 1) return;
  throw UsageError(fmt::format("--strengthen {}: expected a factor from 0 on that is not 1", request.factor));
}

void check_together(const Statistics& statistics, const Contrast& contrast, const Plan& base) {
  const auto& manifest = statistics.manifest;
  if (contrast.checkpoint_fingerprint != manifest.checkpoint_fingerprint) {
    throw InvalidInput(fmt::format("switch: the ranked experts are of checkpoint {}, the statistics of {}",
                                   contrast.checkpoint_fingerprint, manifest.checkpoint_fingerprint));
  }
  if (contrast.experts != manifest.experts || contrast.layers != manifest.moe_layers) {
    throw InvalidInput("switch: ranked experts and statistics have other layers or numbers of experts");
  }
  check_plan_of(base, manifest);
  if (merges(base)) throw InvalidInput("switch: the plan merges experts, and a member cannot be switched alone");
}

/// Families differ, not checkpoints: where the rule has a selection bias, describe() wants it.
void check_selection_bias(const std::string& family_name) {
  const Family* family = find_family(family_name);
  if (family != nullptr && family->has(Role::selection_bias)) return;
  throw InvalidInput(fmt::format("switch --off bias: the router of {} has no selection bias; --off drop takes experts out, "
                                 "--strengthen 0 makes them put out zeros",
                                 family_name));
}

/// Ranked experts that the plan keeps, in their order.
std::vector<RankedExpert> candidates(const Contrast& contrast, const Plan& base) {
  std::map<int, std::set<int>> kept;
  for (const PlanLayer& layer : base.layers) kept[layer.layer] = {layer.keep.begin(), layer.keep.end()};
  std::vector<RankedExpert> found;
  for (const RankedExpert& entry : contrast.ranked) {
    if (kept[entry.layer].contains(entry.expert)) found.push_back(entry);
  }
  return found;
}

Chosen first_of_all(const std::vector<RankedExpert>& ranked, int top) {
  if (static_cast<int>(ranked.size()) < top) {
    throw InvalidInput(fmt::format("switch --top {}: the ranking has {} experts that the plan keeps", top, ranked.size()));
  }
  Chosen chosen;
  for (int i = 0; i < top; ++i) {
    const RankedExpert& entry = ranked[static_cast<std::size_t>(i)];
    chosen[entry.layer].push_back(entry.expert);
  }
  return chosen;
}

/// The first `count` of every layer, or count / groups of every group.
Chosen first_of_each(const std::vector<RankedExpert>& ranked, const Plan& plan, int count, int groups) {
  Chosen chosen;
  std::map<std::pair<int, int>, int> taken;  // layer and group
  for (const RankedExpert& entry : ranked) {
    int& of_group = taken[{entry.layer, groups == 1 ? 0 : group_of(plan, entry.expert)}];
    if (of_group == count / groups) continue;
    ++of_group;
    chosen[entry.layer].push_back(entry.expert);
  }
  for (const PlanLayer& layer : plan.layers) {
    const auto found = chosen[layer.layer].size();
    if (static_cast<int>(found) == count) continue;
    throw InvalidInput(
        fmt::format("switch --per-layer {}: the ranking has {} such experts in layer {}; write it without --top "
                    "and with a smaller --least-count, or ask for fewer",
                    count, found, layer.layer));
  }
  return chosen;
}

/// The smallest number per layer whose first experts include the chosen ones.
int covering(const Chosen& chosen, const Plan& plan) {
  int most = 0;
  for (const auto& [layer, experts] : chosen) {
    std::vector<int> of_group(static_cast<std::size_t>(groups_of(plan)));
    for (const int expert : experts) most = std::max(most, ++of_group[static_cast<std::size_t>(group_of(plan, expert))]);
  }
  return most * groups_of(plan);
}

void check_uniform(const Chosen& chosen, const Plan& plan, int top) {
  const int each = covering(chosen, plan);
  const int all = each * static_cast<int>(plan.layers.size());
  if (all == top) return;
  throw InvalidInput(fmt::format(
      "switch --off drop --top {}: they lie in {} of {} layers, and every layer{} must lose the same "
      "number; --per-layer {} drops them and {} more, --strengthen 0 (or --off bias where the router "
      "has a selection bias) changes these alone",
      top, chosen.size(), plan.layers.size(), groups_of(plan) > 1 ? " and group of experts" : "", each, all - top));
}

Chosen choose(const Contrast& contrast, const SwitchRequest& request, const Plan& base) {
  const auto ranked = candidates(contrast, base);
  const bool drop = request.action == SwitchAction::drop;
  const auto& choice = request.choice;
  if (choice.per_layer > 0) {
    const int groups = drop ? groups_of(base) : 1;
    if (choice.per_layer % groups != 0) {
      throw InvalidInput(fmt::format(
          "switch --per-layer {}: the router's {} groups of experts must lose the same number each; "
          "the nearest that work are {} and {}",
          choice.per_layer, groups, choice.per_layer / groups * groups, (choice.per_layer / groups + 1) * groups));
    }
    return first_of_each(ranked, base, choice.per_layer, groups);
  }
  Chosen chosen = first_of_all(ranked, choice.top);
  if (drop) check_uniform(chosen, base, choice.top);
  return chosen;
}

void check_unchanged(const Plan& plan, const PlanLayer& layer, int expert, SwitchAction action) {
  const auto in = [&](const std::vector<int>& ids) { return std::find(ids.begin(), ids.end(), expert) != ids.end(); };
  const bool scaled = std::any_of(layer.scale.begin(), layer.scale.end(), [&](const auto& s) { return s.expert == expert; });
  if (scaled || in(layer.silence) || in(layer.constant)) {
    throw InvalidInput(fmt::format("switch: the plan changes expert {} of layer {} already", expert, layer.layer));
  }
  if (action == SwitchAction::strengthen) return;
  for (const ProtectedExpert& kept : plan.protect) {
    if (kept.layer != layer.layer || kept.expert != expert) continue;
    throw InvalidInput(fmt::format("switch: the plan protects expert {} of layer {}", expert, layer.layer));
  }
}

void drop(const std::vector<int>& experts, PlanLayer& layer) {
  std::vector<int> keep;
  std::vector<AtomRanges> atoms;
  for (std::size_t slot = 0; slot < layer.keep.size(); ++slot) {
    if (std::find(experts.begin(), experts.end(), layer.keep[slot]) != experts.end()) continue;
    keep.push_back(layer.keep[slot]);
    if (!layer.atoms.empty()) atoms.push_back(std::move(layer.atoms[slot]));
  }
  layer.keep = std::move(keep);
  layer.atoms = std::move(atoms);
}

/// Experts that can still be chosen must be as many in every group as a token can need.
void check_silence(const RouterLimits& limits, const Plan& plan, const PlanLayer& layer) {
  const RouterGroups groups =
      plan.regroup ? RouterGroups{.count = 1, .chosen = 1, .rule = limits.groups.rule} : limits.groups;
  std::vector<int> left(static_cast<std::size_t>(groups.count));
  for (const int expert : layer.keep) ++left[static_cast<std::size_t>(group_of(plan, expert))];
  for (const int expert : layer.silence) --left[static_cast<std::size_t>(group_of(plan, expert))];
  const int least = least_per_group(groups, limits.experts_per_token);
  for (std::size_t group = 0; group < left.size(); ++group) {
    if (left[group] >= least) continue;
    throw InvalidInput(
        fmt::format("switch --off bias: layer {}{} would have {} experts to choose among, and a token can need {}; "
                    "ask for fewer",
                    layer.layer, groups.count > 1 ? fmt::format(", group {}", group) : "", left[group], least));
  }
}

void note_usage(const StatisticsManifest& manifest, const LayerStatistics& statistics, const RouterLimits& limits,
                PlanLayer& layer) {
  const std::vector<double> weights(manifest.tasks.size(), 1.0);
  count_unseen(routed_tokens(statistics, weights), layer);
  if (limits.drifts()) layer.kept_mass = kept_mass(statistics, layer.keep, weights);
}

std::string_view action_name(SwitchAction action) {
  return action == SwitchAction::drop ? "drop" : action == SwitchAction::bias ? "bias" : "strengthen";
}

void note_source(const Contrast& contrast, const SwitchRequest& request, const Chosen& chosen, Plan& plan) {
  nlohmann::ordered_json entry = {{"action", action_name(request.action)}};
  if (request.action == SwitchAction::strengthen) entry["factor"] = request.factor;
  entry["measure"] = contrast_measure_name(contrast.measure);
  entry["contrast"] = contrast.source;
  entry["experts"] = nlohmann::ordered_json::array();
  for (const auto& [layer, experts] : chosen) {
    if (!experts.empty()) entry["experts"].push_back({{"layer", layer}, {"experts", experts}});
  }
  plan.source["switch"].push_back(std::move(entry));
}

}  // namespace

Plan switch_experts(const Statistics& statistics, const Contrast& contrast, const SwitchRequest& request, Plan base) {
  check_request(request);
  check_together(statistics, contrast, base);
  if (request.action == SwitchAction::bias) check_selection_bias(base.family);
  if (request.action == SwitchAction::drop && base.order == SlotOrder::free) {
    throw InvalidInput("switch --off drop: the plan has its experts in an order of its own; drop first, then place");
  }
  Chosen chosen = choose(contrast, request, base);
  const RouterLimits limits = limits_after(statistics.manifest, base);
  for (std::size_t i = 0; i < base.layers.size(); ++i) {
    PlanLayer& layer = base.layers[i];
    auto& experts = chosen[layer.layer];
    std::sort(experts.begin(), experts.end());
    for (const int expert : experts) check_unchanged(base, layer, expert, request.action);
    if (request.action == SwitchAction::drop) {
      drop(experts, layer);
    } else if (request.action == SwitchAction::bias) {
      layer.silence.insert(layer.silence.end(), experts.begin(), experts.end());
      std::sort(layer.silence.begin(), layer.silence.end());
      check_silence(limits, base, layer);
    } else {
      for (const int expert : experts) layer.scale.push_back({.expert = expert, .factor = request.factor});
      std::sort(layer.scale.begin(), layer.scale.end(), [](const auto& a, const auto& b) { return a.expert < b.expert; });
    }
    note_usage(statistics.manifest, statistics.layers[i], limits, layer);
  }
  if (request.action == SwitchAction::drop) {
    base.keep = 0;
    for (const PlanLayer& layer : base.layers) {
      const int left = static_cast<int>(layer.keep.size());
      legal_keep(limits, {.experts = left, .ratio = {}}, base.regroup);
      base.keep = std::max(base.keep, left);
    }
  }
  if (base.correct_drift) check_kept_mass(base);
  note_source(contrast, request, chosen, base);
  return base;
}

}  // namespace moetrim
