// What the statistics say about a plan.
#include <algorithm>
#include <cmath>
#include <optional>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/report.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

using TaskWeights = std::vector<std::pair<std::string, double>>;

/// As the plan notes them for the reader. Empty where it does not: all tasks.
TaskWeights weights_of(const Plan& plan) {
  TaskWeights weights;
  const auto tasks = plan.source.find("tasks");
  if (tasks == plan.source.end() || !tasks->is_array()) return weights;
  for (const auto& task : *tasks) {
    const bool whole = task.is_object() && task.contains("name") && task["name"].is_string() && task.contains("weight") &&
                       task["weight"].is_number();
    if (!whole) throw InvalidInput("plan: source.tasks: expected a name and a weight of every task");
    weights.emplace_back(task["name"].get<std::string>(), task["weight"].get<double>());
  }
  return weights;
}

ScoreOptions options_of(const Plan& plan) {
  ScoreOptions options{.variant = variant_from_name(plan.variant), .seed = 0, .library = {}};
  const auto seed = plan.source.find("seed");
  if (seed != plan.source.end() && seed->is_number_unsigned()) options.seed = seed->get<std::uint64_t>();
  return options;
}

std::optional<MethodMix> known_method(const std::string& name) {
  try {
    return MethodMix::parse(name);
  } catch (const UsageError&) {
    return std::nullopt;  // plans of other commands have names of their own
  }
}

/// The method that chose the plan's experts, or the reason why there is none to repeat.
std::optional<MethodMix> method_of(const Plan& plan, std::string& why) {
  if (plan.keep == plan.experts && plan.counts == LayerCounts::equal) {
    why = "the plan keeps every expert";
    return std::nullopt;
  }
  if (plan.counts == LayerCounts::listed) {
    why = "the layers keep numbers of experts of their own, which are not chosen again here";
    return std::nullopt;
  }
  if (plan.source.contains("switch")) {
    why = "experts were switched by their rank in a contrast, which is not repeated here";
    return std::nullopt;
  }
  if (plan.source.contains("combine") || plan.source.contains("drop")) {
    why = "the plan is a union of tasks, or drops one, which is not repeated here";
    return std::nullopt;
  }
  const std::string name = plan.width == 0 ? plan.method : plan.source.value("expert_method", "");
  auto method = known_method(name);
  if (!method || method->grain() == Grain::atom || merges(plan)) {
    why = fmt::format("{} is no method that scores experts, so the choice cannot be made again", in_quotes(plan.method));
    return std::nullopt;
  }
  if (const ScoringMethod* part = method->second_order()) {
    why = fmt::format("{} needs second-order statistics, which are not kept per slice", in_quotes(part->name));
    return std::nullopt;
  }
  return method;
}

/// Routed tokens whose expert has a router row after the plan, as a share.
double routed_share(const LayerStatistics& layer, const std::vector<int>& rows) {
  double all = 0;
  double kept = 0;
  for (int task = 0; task < layer.tasks; ++task) {
    const auto routed = layer.task_total(Stat::routed_count, task);
    for (const double count : routed) all += count;
    for (const int id : rows) kept += routed[static_cast<std::size_t>(id)];
  }
  return all > 0 ? kept / all : 1;
}

}  // namespace

PlanReport report_plan(const Statistics& statistics, const Plan& plan, int resamples, std::uint64_t seed) {
  check_plan_of(plan, statistics.manifest);
  PlanReport out;
  out.least_routed_share = 2;  // above every share
  for (std::size_t i = 0; i < plan.layers.size(); ++i) {
    std::vector<int> rows = router_rows(plan, plan.layers[i]);
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    const double share = routed_share(statistics.layers[i], rows);
    out.routed_share += share / static_cast<double>(plan.layers.size());
    if (share >= out.least_routed_share) continue;
    out.least_routed_share = share;
    out.least_layer = plan.layers[i].layer;
  }
  const std::optional<MethodMix> method = method_of(plan, out.why);
  if (!method) return out;
  const KeepBudget keep{.experts = plan.keep, .ratio = {}};
  const TaskWeights weights = weights_of(plan);
  out.convergence = convergence(statistics, *method, options_of(plan), keep, weights, plan.regroup);
  out.confidence = kept_set_confidence(statistics, *method, options_of(plan), keep, weights, plan.regroup, resamples, seed);
  if (!out.confidence) out.why = "a task has counted tokens in one slice only, so there is nothing to resample";
  return out;
}

}  // namespace moetrim
