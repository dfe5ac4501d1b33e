// Router drift: a softmax over fewer experts gives each a larger share, and gates that are not renormalised keep it.
// Dividing a token's probabilities by the mass m that its kept experts had is what the smaller softmax does, so gates grow
// by 1 / m; here m is known as a mean over tokens.
#include "plan/router_drift.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

std::optional<double> kept_mass(const LayerStatistics& layer, const std::vector<int>& keep, const std::vector<double>& weights) {
  double sum = 0;
  double weight_sum = 0;
  for (int task = 0; task < layer.tasks; ++task) {
    const double weight = weights[static_cast<std::size_t>(task)];
    const double tokens = layer.task_tokens(task);
    if (weight == 0 || tokens == 0) continue;
    const auto mass = layer.task_total(Stat::router_mass, task);
    double kept = 0;
    for (const int expert : keep) kept += mass[static_cast<std::size_t>(expert)];
    sum += weight * kept / tokens;
    weight_sum += weight;
  }
  if (sum == 0) return std::nullopt;
  return std::min(1.0, sum / weight_sum);  // shares of one token add up to 1 but for rounding
}

void check_kept_mass(const Plan& plan) {
  for (const PlanLayer& layer : plan.layers) {
    if (layer.kept_mass) continue;
    throw InvalidInput(fmt::format("correct-drift: layer {}: the statistics have no router_mass of the kept experts; calibrate "
                                   "on more demonstrations", layer.layer));
  }
}

void check_correct_drift(const RouterLimits& limits) {
  if (limits.drifts()) return;
  throw InvalidInput(fmt::format(
      "correct-drift: {}, so nothing drifts when experts go; leave it out",
      limits.gates_normalised ? "the gates of a token are renormalised over its own experts"
                              : "every gate is the sigmoid of one logit and does not depend on other experts"));
}

std::optional<RouterDrift> router_drift(const Plan& plan) {
  if (plan.layers.empty()) return std::nullopt;
  RouterDrift drift{.mean_mass = 0, .least_mass = 1, .least_layer = plan.layers.front().layer};
  for (const PlanLayer& layer : plan.layers) {
    if (!layer.kept_mass) return std::nullopt;
    drift.mean_mass += *layer.kept_mass / static_cast<double>(plan.layers.size());
    if (*layer.kept_mass >= drift.least_mass) continue;
    drift.least_mass = *layer.kept_mass;
    drift.least_layer = layer.layer;
  }
  return drift;
}

}  // namespace moetrim
