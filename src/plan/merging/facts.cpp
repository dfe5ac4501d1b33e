// What the statistics say of experts that may be merged.
#include "plan/merging/facts.h"

#include <numeric>

namespace moetrim {
namespace {

/// Adds one task's sums; `sums` is [tasks, …].
void add_mean(std::vector<double>& out, std::span<const double> sums, std::size_t task, double weight, double tokens) {
  if (weight == 0 || tokens == 0) return;
  const auto of_task = sums.subspan(task * out.size(), out.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += weight * (of_task[i] / tokens);
}

std::vector<double> pick(std::span<const double> rows, std::size_t width, std::span<const int> ids) {
  std::vector<double> out;
  if (rows.empty()) return out;
  for (const int id : ids) {
    const auto row = rows.subspan(static_cast<std::size_t>(id) * width, width);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

std::vector<double> pick_pairs(std::span<const double> square, std::size_t n, std::span<const int> ids) {
  std::vector<double> out;
  if (square.empty()) return out;
  for (const int i : ids) {
    for (const int j : ids) out.push_back(square[static_cast<std::size_t>(i) * n + static_cast<std::size_t>(j)]);
  }
  return out;
}

}  // namespace

MergeFacts layer_facts(const LayerStatistics& layer, const ExpertVectors& vectors, std::vector<double> saliency,
                       std::span<const double> weights, bool logits, bool outputs) {
  const auto experts = static_cast<std::size_t>(layer.experts);
  MergeFacts facts;
  facts.usage.assign(experts, 0);
  facts.mass.assign(experts, 0);
  facts.saliency = std::move(saliency);
  facts.hidden = static_cast<std::size_t>(vectors.hidden);
  if (logits) facts.gram.assign(experts * experts, 0);
  if (outputs) facts.outputs.assign(experts * facts.hidden, 0);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (std::size_t t = 0; t < weights.size(); ++t) {
    const int task = static_cast<int>(t);
    const double weight = weights[t] / sum;
    const double tokens = layer.task_tokens(task);
    add_mean(facts.usage, layer.task_total(Stat::routed_count, task), 0, weight, tokens);
    add_mean(facts.mass, layer.task_total(Stat::router_mass, task), 0, weight, tokens);
    if (logits) add_mean(facts.gram, vectors.logit_gram, t, weight, tokens);
    if (outputs) add_mean(facts.outputs, vectors.output, t, weight, vectors.all_tokens[t]);
  }
  return facts;
}

MergeFacts facts_of(const MergeFacts& layer, std::span<const int> ids) {
  return {.usage = pick(layer.usage, 1, ids),
          .mass = pick(layer.mass, 1, ids),
          .saliency = pick(layer.saliency, 1, ids),
          .gram = pick_pairs(layer.gram, layer.usage.size(), ids),
          .outputs = pick(layer.outputs, layer.hidden, ids),
          .weight_distances = pick_pairs(layer.weight_distances, layer.usage.size(), ids),
          .hidden = layer.hidden};
}

}  // namespace moetrim
