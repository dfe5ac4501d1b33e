// What of the statistics counts for a plan.
#include "plan/measured.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

void check_scores(const Statistics& statistics, const Scores& scores) {
  const auto& manifest = statistics.manifest;
  const bool atoms = scores.grain == Grain::atom;
  if (atoms && (scores.width < 1 || scores.width != manifest.expert_width)) {
    throw InvalidInput(fmt::format("the scores are of experts with {} atomic experts, the statistics of {}", scores.width,
                                   manifest.expert_width));
  }
  const auto expected = static_cast<std::size_t>(manifest.experts) * static_cast<std::size_t>(atoms ? scores.width : 1);
  if (scores.layers != manifest.moe_layers || scores.values.size() != scores.layers.size()) {
    throw InvalidInput(fmt::format("the scores are of other layers than the statistics: {} for {} MoE layers",
                                   scores.layers.size(), manifest.moe_layers.size()));
  }
  for (std::size_t i = 0; i < scores.values.size(); ++i) {
    const auto& values = scores.values[i];
    if (values.size() != expected) {
      throw InvalidInput(fmt::format("layer {}: {} scores of {}s, the statistics have {}", scores.layers[i], values.size(),
                                     atoms ? "atomic expert" : "expert", expected));
    }
    if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) {
      throw InvalidInput(fmt::format("layer {}: a score is not a finite number", scores.layers[i]));
    }
  }
  const std::string of = scores.source.value("checkpoint_fingerprint", manifest.checkpoint_fingerprint);
  if (of != manifest.checkpoint_fingerprint) {
    throw InvalidInput(
        fmt::format("the scores are of checkpoint {}, the statistics of {}", of, manifest.checkpoint_fingerprint));
  }
}

std::vector<double> task_weights(const StatisticsManifest& manifest, const Scores& scores) {
  std::vector<double> weights;
  for (const auto& task : manifest.tasks) {
    const auto found = std::find(scores.tasks.begin(), scores.tasks.end(), task.name);
    const auto index = static_cast<std::size_t>(found - scores.tasks.begin());
    const bool scored = scores.tasks.empty() || found != scores.tasks.end();
    weights.push_back(!scored ? 0 : index < scores.weights.size() ? scores.weights[index] : 1);
  }
  return weights;
}

std::vector<double> routed_tokens(const LayerStatistics& layer, const std::vector<double>& weights) {
  std::vector<double> routed(static_cast<std::size_t>(layer.experts), 0.0);
  for (int task = 0; task < layer.tasks; ++task) {
    if (weights[static_cast<std::size_t>(task)] == 0) continue;
    const auto of_task = layer.task_total(Stat::routed_count, task);
    for (std::size_t e = 0; e < routed.size(); ++e) routed[e] += of_task[e];
  }
  return routed;
}

void count_unseen(const std::vector<double>& routed, PlanLayer& layer) {
  const auto is_unseen = [&](int id) { return routed[static_cast<std::size_t>(id)] == 0; };
  layer.unseen = static_cast<int>(std::count(routed.begin(), routed.end(), 0.0));
  layer.unseen_kept = static_cast<int>(std::count_if(layer.keep.begin(), layer.keep.end(), is_unseen));
}

}  // namespace moetrim
