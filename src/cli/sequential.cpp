// Sequential calibration: the options of a plan as a choice that is made layer by layer.

#include "cli/sequential.h"

#include <array>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/sequential.h"

namespace moetrim::cli {

namespace {

/// The plan of one layer, from its statistics alone.
Plan plan_layer(PlanFlags flags, StatisticsManifest manifest, const LayerStatistics& layer) {
  flags.protect = protection_of_layer(flags.protect, manifest, layer.layer);
  manifest.moe_layers = {layer.layer};
  const Statistics statistics{.manifest = std::move(manifest), .layers = {layer}};
  return flags.make(statistics, [](int) -> ExpertVectors { throw Error("a sequential calibration merges nothing"); });
}

std::vector<bool> kept_of(const Plan& plan) {
  std::vector<bool> kept(static_cast<std::size_t>(plan.experts), false);
  for (const int expert : plan.layers.front().keep) kept[static_cast<std::size_t>(expert)] = true;
  return kept;
}

}  // namespace

void check_sequential(const PlanFlags& flags) {
  if (flags.score.method.empty() || flags.keep.empty()) {
    throw UsageError("--sequential prunes every layer before the next one is measured; say how with --method and --keep");
  }
  const std::array unfit{std::pair("--keep-atoms", !flags.keep_atoms.empty()),
                         std::pair("--budget-bytes", !flags.budget_bytes.empty()),
                         std::pair("--budget-flops", !flags.budget_flops.empty()),
                         std::pair("--keep-by-layer", !flags.keep_by_layer.empty()),
                         std::pair("--merge", !flags.merge.empty()),
                         std::pair("--with, --combine, --protect-task or --drop-task", !flags.tasks.empty()),
                         std::pair("--correct-drift", flags.correct_drift)};
  for (const auto& [option, given] : unfit) {
    if (given) throw UsageError(fmt::format("{} cannot be met layer by layer; leave it out with --sequential", option));
  }
  const MethodMix method = MethodMix::parse(flags.score.method);
  if (method.grain() == Grain::atom || flags.needs_second_order()) {
    throw UsageError(fmt::format("{} needs the reverse sweep, which a sequential calibration does not have; choose a "
                                 "first-order method over experts", method.name()));
  }
  flags.check();
}

void make_sequential(const PlanFlags& flags, const Model& model, const std::vector<Task>& tasks, CalibrateOptions& options) {
  check_sequential(flags);
  flags.check(router_limits(model));
  const StatisticsManifest manifest = calibration_manifest(model, tasks, options);
  // A layer of which nothing was measured already meets every refusal.
  std::optional<Plan> plan;
  for (const int layer : manifest.moe_layers) {
    plan = plan_layer(flags, manifest, LayerStatistics(layer, static_cast<int>(tasks.size()), manifest.experts));
  }
  options.sequential = SequentialCalibration{
      .choose = [flags](const auto& run, const auto& layer) { return kept_of(plan_layer(flags, run, layer)); },
      .keep = plan->keep,
      .regroup = flags.regroup,
      .facts = choice_of(*plan, flags.protect)};
}

}  // namespace moetrim::cli
