// Super experts: the few whose outputs hold extreme values, without which a model stops making sense.
// Source: Unveiling Super Experts in Mixture-of-Experts Large Language Models, arXiv:2507.23279. Two things differ from the
// published code unless `official` is asked for: it takes an expert's maximum over one row only (the first of its batch),
// which can miss the outlier and flag another, and it floors a tenth of the largest, which is no condition at all
// when the largest is below 10. The shared experts that it also ranks are not measured here.
#include <algorithm>
#include <cmath>

#include "moetrim/error.h"
#include "moetrim/plan.h"
#include "plan/quantile.h"

namespace moetrim {
namespace {

constexpr double kPercentile = 0.995;
constexpr double kLayerShare = 0.75;
constexpr double kMedianMultiple = 10;  // ours: an outlier is another order of magnitude, not the largest of equals

/// Largest value over tasks and slices: [experts].
std::vector<double> maxima(const LayerStatistics& layer, Variant variant) {
  const Stat stat = variant == Variant::official ? Stat::max_abs_first_row : Stat::max_abs;
  std::vector<double> result(static_cast<std::size_t>(layer.experts), 0.0);
  for (int task = 0; task < layer.tasks; ++task) {
    const auto of_task = layer.task_total(stat, task);
    for (std::size_t e = 0; e < result.size(); ++e) result[e] = std::max(result[e], of_task[e]);
  }
  return result;
}

/// Over reached experts: where most were never chosen, a median over all would be 0 and would ask for nothing.
double median_of_reached(const std::vector<double>& sorted) {
  const auto first = std::upper_bound(sorted.begin(), sorted.end(), 0.0);
  return first == sorted.end() ? 0 : quantile(std::vector<double>(first, sorted.end()), 0.5);
}

/// Half to even: 0.75 x 2 and 0.75 x 6 end in a half, and the published code rounds as Python does.
int layers_end(int layers) {
  const double exact = kLayerShare * layers;
  const double down = std::floor(exact);
  const bool up = exact - down > 0.5 || (exact - down == 0.5 && std::fmod(down, 2) != 0);
  return static_cast<int>(down) + (up ? 1 : 0);
}

}  // namespace

SuperExpertThresholds super_expert_thresholds(const Statistics& statistics, Variant variant) {
  SuperExpertThresholds thresholds;
  thresholds.layers_end = layers_end(statistics.manifest.layers);
  std::vector<double> candidates;
  for (const auto& layer : statistics.layers) {
    if (layer.layer >= thresholds.layers_end) continue;
    const auto values = maxima(layer, variant);
    candidates.insert(candidates.end(), values.begin(), values.end());
  }
  if (candidates.empty()) {
    throw InvalidInput("protect super: no MoE layer is among the first three quarters of the layers, where super experts are");
  }
  std::sort(candidates.begin(), candidates.end());
  thresholds.percentile = quantile(candidates, kPercentile);
  thresholds.tenth = candidates.back() / 10;
  if (variant == Variant::official) {
    thresholds.tenth = std::floor(thresholds.tenth);
  } else {
    thresholds.least = kMedianMultiple * median_of_reached(candidates);
  }
  return thresholds;
}

std::vector<ProtectedExpert> find_super_experts(const Statistics& statistics, Variant variant) {
  const auto thresholds = super_expert_thresholds(statistics, variant);
  std::vector<ProtectedExpert> found;
  for (const auto& layer : statistics.layers) {
    if (layer.layer >= thresholds.layers_end) continue;
    const auto values = maxima(layer, variant);
    for (int expert = 0; expert < layer.experts; ++expert) {
      const double value = values[static_cast<std::size_t>(expert)];
      if (value > thresholds.percentile && value > thresholds.tenth && value >= thresholds.least) {
        found.push_back({layer.layer, expert, "super"});
      }
    }
  }
  return found;
}

}  // namespace moetrim
