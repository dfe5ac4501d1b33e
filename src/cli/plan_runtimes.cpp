// --runtime of plans: numbers and widths that runtimes take, and plans that they would refuse.

#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/stages.h"
#include "moetrim/error.h"
#include "moetrim/runtimes.h"

namespace moetrim::cli {

namespace {

/// With the groups that the plan leaves.
ServedModel regrouped(ServedModel model, bool regroup) {
  if (regroup) model.router.groups = {.count = 1, .chosen = 1, .rule = model.router.groups.rule};
  return model;
}

void require_all(const ServedModel& model, const std::vector<RuntimeTarget>& targets) {
  for (const RuntimeTarget& target : targets) require_runtime(check_runtime(model, target));
}

/// A ratio becomes the nearest number that all targets take; a number must be one of them.
std::string settled(const std::string& keep, const ServedModel& model, const std::vector<RuntimeTarget>& targets) {
  return keep.empty() ? keep : std::to_string(legal_keep(model, targets, KeepBudget::parse(keep)));
}

/// What all legal widths are multiples of.
std::int64_t width_step(const ServedModel& model, const std::vector<RuntimeTarget>& targets) {
  std::int64_t step = 0;
  for (const std::int64_t width : legal_widths(model, targets)) step = std::gcd(step, width);
  return step;
}

nlohmann::ordered_json targets_json(const std::vector<RuntimeTarget>& targets) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const RuntimeTarget& target : targets) list.push_back({{"runtime", target.text}, {"version", target.version()}});
  return list;
}

}  // namespace

void add_runtimes(CLI::App& command, std::vector<std::string>& runtimes) {
  command
      .add_option("--runtime", runtimes,
                  "Runtime that must take the result, for example vllm,tp=8,ep=8,quant=fp8 (see moetrim check); repeatable")
      ->allow_extra_args(false);
}

/// Whether the widths of experts will differ whatever is measured.
bool PlanFlags::widths_differ() const {
  if (!over_atoms() || scope == "expert") return false;
  if (keep_atoms.empty() || !budget_bytes.empty() || !budget_flops.empty()) return true;
  const AtomBudget budget = AtomBudget::parse(keep_atoms);
  return !budget.share || budget.share->part < budget.share->whole;
}

void PlanFlags::check_runtimes(const ServedModel& whole) const {
  const auto targets = parse_runtimes(runtimes);
  if (targets.empty()) return;
  ServedModel model = regrouped(whole, regroup);
  model.listed_counts = !keep_by_layer.empty();
  model.listed_widths = widths_differ() || (!merge.empty() && merge.router == "map");
  const std::string& last = merge.to.empty() ? keep : merge.to;
  if (!last.empty()) {
    model = with_keep(std::move(model), legal_keep(model, targets, KeepBudget::parse(last)));
  } else if (const auto keeps = legal_keeps(model, targets); !budget_bytes.empty() && !keeps.empty()) {
    model = with_keep(std::move(model), keeps.back());  // the budget will say which of them
  }
  if (over_atoms() && scope == "expert" && align.empty()) {
    if (const auto widths = legal_widths(model, targets); !widths.empty()) {
      model = with_width(std::move(model), widths.back());
    }
  }
  require_all(model, targets);
}

/// The same options with numbers that all targets take.
PlanFlags PlanFlags::settle(const ServedModel& whole, const std::vector<RuntimeTarget>& targets) const {
  PlanFlags out = *this;
  out.runtimes.clear();
  const ServedModel model = regrouped(whole, regroup);
  if (merge.to.empty()) out.keep = settled(keep, model, targets);
  out.merge.to = settled(merge.to, model, targets);
  if (over_atoms() && scope == "expert" && align.empty()) {
    const std::int64_t step = width_step(model, targets);
    const std::int64_t blocks = atom_blocks.empty() ? 1 : parse_count(atom_blocks, "--atom-blocks");
    if (step > 1) out.align = std::to_string(std::lcm(step, blocks));
  }
  return out;
}

Plan PlanFlags::make(const Statistics& statistics, const ReadVectors& vectors) const {
  const auto targets = parse_runtimes(runtimes);
  if (targets.empty()) return make_freely(statistics, vectors);
  const ServedModel whole = served_model(statistics.manifest);
  PlanFlags flags = settle(whole, targets);
  Plan plan = flags.make_freely(statistics, vectors);
  const std::string& last = merge.to.empty() ? keep : merge.to;
  int wanted = plan.keep;
  if (const KeepBudget budget = last.empty() ? KeepBudget() : KeepBudget::parse(last); budget.ratio) {
    wanted = legal_keep(router_limits(statistics.manifest), budget, regroup);
  }
  const auto keeps = legal_keeps(regrouped(whole, regroup), targets);
  const bool by_budget = merge.empty() && keep.empty() && keep_by_layer.empty() && !over_atoms();
  if (by_budget && !keeps.empty() && plan.keep > keeps.front()) {  // the next smaller number fits the budget too
    flags.keep = std::to_string(*(std::upper_bound(keeps.begin(), keeps.end(), plan.keep) - 1));
    if (flags.keep != std::to_string(plan.keep)) plan = flags.make_freely(statistics, vectors);
  }
  require_all(served_model(statistics.manifest, plan), targets);
  plan.source["runtimes"] = targets_json(targets);
  const int taken =
      last.empty() ? plan.keep : KeepBudget::parse(merge.to.empty() ? flags.keep : flags.merge.to).of(plan.experts);
  if (taken != wanted) plan.source["runtimes_keep"] = {{"wanted", wanted}, {"taken", taken}};
  if (flags.align != align) plan.source["runtimes_align"] = parse_count(flags.align, "--align");
  return plan;
}

std::string runtimes_note(const PlanFlags& flags, const StatisticsManifest& manifest, const Plan& plan) {
  constexpr std::size_t kMostNamed = 4;
  std::vector<std::string> rules;
  for (const RuntimeTarget& target : parse_runtimes(flags.runtimes)) {
    for (auto& rule : check_runtime(served_model(manifest, plan), target).unchecked) rules.push_back(std::move(rule));
  }
  if (rules.empty()) return "";
  const std::string named = rules.size() <= kMostNamed ? fmt::format(" ({})", fmt::join(rules, ", ")) : "";
  return fmt::format("note: {} rules about heads and how weights are stored{} are left to check and rewrite --runtime, which see the "
                     "checkpoint", rules.size(), named);
}

}  // namespace moetrim::cli
