// What PMQ weighs: routed tokens, gate weights and quantisation errors of every expert, all tasks together.

#include "moetrim/precision.h"

namespace moetrim {

namespace {

/// Adds every task's values of a statistic. [E]
std::vector<double> all_tasks(const LayerStatistics& layer, Stat stat) {
  std::vector<double> sum(static_cast<std::size_t>(layer.experts));
  for (int task = 0; task < layer.tasks; ++task) {
    const auto values = layer.task_total(stat, task);
    for (std::size_t e = 0; e < sum.size(); ++e) sum[e] += values[e];
  }
  return sum;
}

}  // namespace

std::vector<PrecisionFactors> precision_factors(const std::filesystem::path& folder, const Statistics& statistics) {
  require_quantisation(statistics.manifest, "precision");
  std::vector<PrecisionFactors> out;
  for (const LayerStatistics& layer : statistics.layers) {
    const ExpertVectors vectors = read_vectors(folder, statistics.manifest, layer.layer);
    PrecisionFactors factors{.layer = layer.layer, .routed = all_tasks(layer, Stat::routed_count),
                             .gates = all_tasks(layer, Stat::gate_sum), .errors = {}};
    factors.errors.resize(factors.routed.size());
    const std::size_t values = factors.errors.size() * kQuantisationBits;
    for (std::size_t i = 0; i < vectors.quantisation_error.size(); ++i) {
      factors.errors[i % values / kQuantisationBits][i % kQuantisationBits] += vectors.quantisation_error[i];
    }
    out.push_back(std::move(factors));
  }
  return out;
}

}  // namespace moetrim
