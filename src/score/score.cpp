// Scores of a whole run: every layer, by one method or a weighted mix of several, of one task or a weighted mix of several.
#include "moetrim/score.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "score/normalise.h"

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

void check_finite(const std::vector<double>& scores, const ScoringMethod& method, int layer, int width) {
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::isfinite(scores[i])) continue;
    const auto of_expert = static_cast<std::size_t>(std::max(width, 1));
    const std::string atom = width > 0 ? fmt::format(", atomic expert {}", i % of_expert) : "";
    throw InvalidInput(fmt::format("layer {}, expert {}{}: the {} score is {}; the statistics hold values too large to add",
                                   layer, i / of_expert, atom, method.name, scores[i]));
  }
}

LayerScores score_by(const Statistics& statistics, const ScoringMethod& method, const ScoreOptions& options, int task) {
  LayerScores scores;
  for (std::size_t i = 0; i < statistics.layers.size(); ++i) {
    scores.push_back(method.second_order ? method.second_order(statistics.manifest, statistics.atoms[i], task, options)
                                         : method.score(statistics.manifest, statistics.layers[i], task, options));
    check_finite(scores.back(), method, statistics.layers[i].layer,
                 method.grain == Grain::atom ? statistics.manifest.expert_width : 0);
  }
  return scores;
}

LayerScores score_task(const Statistics& statistics, const MethodMix& methods, const ScoreOptions& options, int task) {
  if (methods.parts().size() == 1) return score_by(statistics, *methods.parts().front().method, options, task);
  LayerScores mix;
  for (const auto& [method, weight] : methods.parts()) {
    LayerScores scores = score_by(statistics, *method, options, task);
    normalise(scores, method->grain, method->name);
    add_weighted(mix, weight, scores);
  }
  return mix;
}

LayerScores score_tasks(const Statistics& statistics, const MethodMix& methods, const ScoreOptions& options,
                        const std::vector<WeightedTask>& tasks) {
  if (tasks.size() == 1) return score_task(statistics, methods, options, tasks.front().task);
  LayerScores mix;
  for (const auto& [task, weight] : tasks) {
    LayerScores scores = score_task(statistics, methods, options, task);
    normalise(scores, methods.grain(), methods.name());
    add_weighted(mix, weight, scores);
  }
  return mix;
}

/// Scores that published code gives experts without tokens are marks rather than numbers: no sum with others has a meaning.
void check_alone(const ScoringMethod& method, std::size_t tasks, std::size_t methods) {
  if (tasks > 1) {
    throw UsageError(fmt::format("{} --variant official: the published code scores one set of demonstrations, these are {} "
                                 "tasks; choose one with --task",
                                 method.name, tasks));
  }
  if (methods > 1) {
    throw UsageError(fmt::format("{} --variant official: the published code marks experts that no token reached by scores that "
                                 "cannot be added to others; give it alone, or --variant executed",
                                 method.name));
  }
}

void check_library(const MethodMix& methods, const ScoreOptions& options, std::size_t tasks) {
  bool known = false;
  for (const auto& [method, weight] : methods.parts()) {
    if (!method->by_library || options.variant != Variant::official) continue;
    check_alone(*method, tasks, methods.parts().size());
    known = true;
  }
  if (options.library.empty()) return;
  if (!known) {
    throw UsageError(fmt::format("library version {}: {} --variant {} does not depend on it; leave it out", options.library,
                                 methods.name(), variant_name(options.variant)));
  }
  if (options.library == "4.56" || options.library == "4.51") return;
  throw UsageError(fmt::format("library version {}: expected 4.56 or 4.51", in_quotes(options.library)));
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
  nlohmann::ordered_json source = {{"checkpoint_fingerprint", manifest.checkpoint_fingerprint},
                                   {"family", manifest.family},
                                   {"tasks", std::move(list)},
                                   {"seed", options.seed}};
  if (!options.library.empty()) source["library"] = options.library;
  return source;
}

}  // namespace

Scores score(const Statistics& statistics, const MethodMix& method, const ScoreOptions& options,
             const TaskWeights& task_weights) {
  const auto tasks = tasks_to_score(statistics, task_weights);
  check_library(method, options, tasks.size());
  if (const ScoringMethod* part = method.second_order(); part != nullptr && statistics.atoms.empty()) {
    throw InvalidInput(
        fmt::format("{} needs second-order statistics; calibrate with --statistics second-order", part->name));
  }
  Scores scores;
  scores.method = method.name();
  scores.variant = variant_name(options.variant);
  scores.grain = method.grain();
  scores.width = method.grain() == Grain::atom ? statistics.manifest.expert_width : 0;
  scores.source = source_of(statistics.manifest, options, tasks);
  for (const auto& [task, weight] : tasks) {
    scores.tasks.push_back(statistics.manifest.tasks[static_cast<std::size_t>(task)].name);
    scores.weights.push_back(weight);
  }
  scores.layers = statistics.manifest.moe_layers;
  scores.values = score_tasks(statistics, method, options, tasks);
  return scores;
}

}  // namespace moetrim
