// MoNE's score: how much an expert's outputs vary, times how much they count.

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/replace.h"

namespace moetrim {

namespace {

struct WeightedTask {
  int task = 0;
  double weight = 1;
};

std::vector<WeightedTask> tasks_of(const Statistics& statistics,
                                   const std::vector<std::pair<std::string, double>>& weights) {
  std::vector<WeightedTask> tasks;
  for (const auto& [name, weight] : weights) {
    if (!(std::isfinite(weight) && weight > 0)) {
      throw UsageError(fmt::format("weight {} of task {}: expected a finite number above zero", weight, name));
    }
    tasks.push_back({statistics.task(name), weight});
  }
  if (!tasks.empty()) return tasks;
  for (std::size_t task = 0; task < statistics.manifest.tasks.size(); ++task) tasks.push_back({static_cast<int>(task), 1.0});
  return tasks;
}

/// Of one task. [E]
std::vector<double> mone(const LayerStatistics& layer, const ExpertVectors& vectors, int task) {
  const auto count = layer.task_total(Stat::routed_count, task);
  const auto gates = layer.task_total(Stat::gate_sum, task);
  const double tokens = std::max(layer.task_tokens(task), 1.0);
  const auto hidden = static_cast<std::size_t>(vectors.hidden);
  std::vector<double> scores(count.size());
  for (std::size_t e = 0; e < scores.size(); ++e) {
    if (count[e] < 2) continue;
    const std::size_t row = static_cast<std::size_t>(task) * scores.size() + e;
    const auto sum = vectors.routed_output.begin() + static_cast<std::ptrdiff_t>(row * hidden);
    const double of_sum = std::inner_product(sum, sum + static_cast<std::ptrdiff_t>(hidden), sum, 0.0);
    const double variance = std::max(vectors.output_square[row] - of_sum / count[e], 0.0) / (count[e] - 1);
    scores[e] = std::sqrt(variance) * gates[e] / tokens;
  }
  return scores;
}

}  // namespace

Scores mone_scores(const Statistics& statistics, const std::function<ExpertVectors(int layer)>& vectors,
                   const std::vector<std::pair<std::string, double>>& task_weights) {
  const auto tasks = tasks_of(statistics, task_weights);
  Scores scores;
  scores.method = "mone";
  scores.variant = variant_name(Variant::executed);
  scores.layers = statistics.manifest.moe_layers;
  scores.source = {{"checkpoint_fingerprint", statistics.manifest.checkpoint_fingerprint}};
  for (const auto& [task, weight] : tasks) {
    scores.tasks.push_back(statistics.manifest.tasks[static_cast<std::size_t>(task)].name);
    scores.weights.push_back(weight);
  }
  for (const LayerStatistics& layer : statistics.layers) {
    const ExpertVectors of_layer = vectors(layer.layer);
    std::vector<double> mix(static_cast<std::size_t>(layer.experts));
    for (const auto& [task, weight] : tasks) {
      const auto values = mone(layer, of_layer, task);
      const double sum = tasks.size() == 1 ? 1.0 : std::accumulate(values.begin(), values.end(), 0.0);
      for (std::size_t e = 0; e < mix.size() && sum > 0; ++e) mix[e] += (tasks.size() == 1 ? 1.0 : weight) * values[e] / sum;
    }
    scores.values.push_back(std::move(mix));
  }
  return scores;
}

}  // namespace moetrim
