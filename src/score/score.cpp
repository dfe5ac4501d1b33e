// Scores of a whole run: every layer, one task or a weighted mix of several.
#include "moetrim/score.h"

#include <cmath>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

struct WeightedTask {
  int task;
  double weight;
};

using TaskWeights = std::vector<std::pair<std::string, double>>;

std::vector<WeightedTask> tasks_to_score(const Statistics& statistics, const TaskWeights& weights) {
  std::vector<WeightedTask> tasks;
  if (weights.empty()) {
    for (std::size_t i = 0; i < statistics.manifest.tasks.size(); ++i) tasks.push_back({static_cast<int>(i), 1.0});
    return tasks;
  }
  for (const auto& [name, weight] : weights) {
    if (!std::isfinite(weight) || weight <= 0) {
      throw UsageError(fmt::format("weight {} of task {}: expected a finite number above zero", weight, in_quotes(name)));
    }
    const int task = statistics.task(name);
    for (const auto& other : tasks) {
      if (other.task == task) throw UsageError(fmt::format("task {} has two weights", in_quotes(name)));
    }
    tasks.push_back({task, weight});
  }
  return tasks;
}

/// To sum 1. By magnitude, since published TCESS scores may be negative and could cancel; zeros stay zeros.
void normalise(std::vector<double>& scores) {
  double sum = 0;
  for (const double value : scores) sum += std::abs(value);
  if (sum == 0) return;
  for (double& value : scores) value /= sum;
}

void check_finite(const std::vector<double>& scores, const ScoringMethod& method, int layer) {
  for (std::size_t expert = 0; expert < scores.size(); ++expert) {
    if (std::isfinite(scores[expert])) continue;
    throw InvalidInput(fmt::format("layer {}, expert {}: the {} score is {}; the statistics hold values too large to add",
                                   layer, expert, method.name, scores[expert]));
  }
}

std::vector<double> score_layer(const StatisticsManifest& manifest, const LayerStatistics& layer, const ScoringMethod& method,
                                const ScoreOptions& options, const std::vector<WeightedTask>& tasks) {
  std::vector<double> mix(static_cast<std::size_t>(layer.experts), 0.0);
  for (const auto& [task, weight] : tasks) {
    std::vector<double> scores = method.score(manifest, layer, task, options);
    check_finite(scores, method, layer.layer);
    if (tasks.size() == 1) return scores;
    normalise(scores);
    for (std::size_t expert = 0; expert < mix.size(); ++expert) mix[expert] += weight * scores[expert];
  }
  check_finite(mix, method, layer.layer);
  return mix;
}

nlohmann::ordered_json source_of(const StatisticsManifest& manifest, const ScoreOptions& options,
                                 const std::vector<WeightedTask>& tasks) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const auto& [task, weight] : tasks) {
    const auto& facts = manifest.tasks[static_cast<std::size_t>(task)];
    list.push_back({{"name", facts.name},
                    {"digest", facts.digest},
                    {"counted_tokens", facts.counted_tokens},
                    {"weight", weight}});
  }
  return {{"checkpoint_fingerprint", manifest.checkpoint_fingerprint},
          {"family", manifest.family},
          {"tasks", std::move(list)},
          {"seed", options.seed}};
}

}  // namespace

Scores score(const Statistics& statistics, const ScoringMethod& method, const ScoreOptions& options,
             const TaskWeights& task_weights) {
  const auto tasks = tasks_to_score(statistics, task_weights);
  Scores scores;
  scores.method = method.name;
  scores.variant = variant_name(options.variant);
  scores.source = source_of(statistics.manifest, options, tasks);
  for (const auto& [task, weight] : tasks) {
    scores.tasks.push_back(statistics.manifest.tasks[static_cast<std::size_t>(task)].name);
    scores.weights.push_back(weight);
  }
  for (const auto& layer : statistics.layers) {
    scores.layers.push_back(layer.layer);
    scores.values.push_back(score_layer(statistics.manifest, layer, method, options, tasks));
  }
  return scores;
}

}  // namespace moetrim
