// One MoE layer's statistics on request in memory.
#include "moetrim/vectors.h"

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {
namespace {

std::size_t size(int value) { return static_cast<std::size_t>(value); }

/// Combines task `other_task` of `from` with task `task` of `to`; both hold `tasks` blocks of equal length.
void combine_task(std::vector<double>& to, int tasks, int task, const std::vector<double>& from, int other_tasks, int other_task,
                  bool by_max = false) {
  const std::size_t length = to.size() / size(tasks);
  double* out = to.data() + size(task) * length;
  const double* in = from.data() + size(other_task) * (from.size() / size(other_tasks));
  for (std::size_t i = 0; i < length; ++i) out[i] = by_max ? std::max(out[i], in[i]) : out[i] + in[i];
}

/// The samples of two sorted lists that are kept, smallest keys first: (key, row of the first list or of the second).
struct Pick {
  double key;
  bool second;
  std::size_t row;
};

std::vector<Pick> smallest(const std::vector<double>& first, const std::vector<double>& second, std::size_t limit) {
  std::vector<Pick> picks;
  std::size_t a = 0, b = 0;
  while (picks.size() < limit && (a < first.size() || b < second.size())) {
    const bool take_second = a == first.size() || (b < second.size() && second[b] < first[a]);
    picks.push_back(take_second ? Pick{second[b], true, b} : Pick{first[a], false, a});
    ++(take_second ? b : a);
  }
  return picks;
}

}  // namespace

ExpertVectors::ExpertVectors(int layer_id, int task_count, int expert_count, const Facts& facts)
    : layer(layer_id),
      tasks(task_count),
      experts(expert_count),
      width(facts.width),
      hidden(facts.hidden),
      markers(static_cast<int>(facts.markers.size())),
      all_experts(facts.all_experts),
      quantisation(facts.quantisation),
      sample_limit(facts.activation_samples) {
  if (layer < 0 || tasks < 1 || experts < 1 || width < 1 || hidden < 1) {
    throw InvalidInput(fmt::format("vectors of layer {} need at least one task, expert, activation and channel, got {}, {}, {} and {}",
                                   layer, tasks, experts, width, hidden));
  }
  const std::size_t pairs = size(tasks) * size(experts);
  logit_gram.assign(pairs * size(experts), 0.0);
  routed_activation.assign(pairs * size(width), 0.0);
  routed_output.assign(pairs * size(hidden), 0.0);
  output_square.assign(pairs, 0.0);
  input_max.assign(pairs * size(hidden), 0.0);
  router_input_max.assign(size(tasks) * size(hidden), 0.0);
  weight_max.assign(size(hidden), 0.0);
  marker_count.assign(pairs * size(markers), 0.0);
  marker_tokens.assign(size(tasks) * size(markers), 0.0);
  if (all_experts) {
    all_tokens.assign(size(tasks), 0.0);
    activation.assign(pairs * size(width), 0.0);
    output.assign(pairs * size(hidden), 0.0);
  }
  if (quantisation) quantisation_error.assign(pairs * kQuantisationBits, 0.0);
}

void ExpertVectors::add(const ExpertVectors& other) {
  if (tasks != other.tasks) {
    throw InvalidInput(fmt::format("layer {}: cannot add vectors of {} tasks to those of {}", layer, other.tasks, tasks));
  }
  for (int task = 0; task < tasks; ++task) add_task(task, other, task);
  add_samples(other);
}

void ExpertVectors::add_task(int task, const ExpertVectors& other, int other_task) {
  const bool same = layer == other.layer && experts == other.experts && width == other.width && hidden == other.hidden &&
                    markers == other.markers && all_experts == other.all_experts && quantisation == other.quantisation;
  if (!same) {
    throw InvalidInput(fmt::format("cannot add vectors of layer {} ({} experts, [{}, {}]) to layer {} ({} experts, [{}, {}]): they "
                                   "are of different runs",
                                   other.layer, other.experts, other.hidden, other.width, layer, experts, hidden, width));
  }
  if (weight_max != other.weight_max) {
    throw InvalidInput(fmt::format("cannot add vectors of layer {}: the experts' weights differ, so they are of different checkpoints",
                                   layer));
  }
  const auto combine = [&](std::vector<double> ExpertVectors::*member, bool by_max = false) {
    combine_task(this->*member, tasks, task, other.*member, other.tasks, other_task, by_max);
  };
  combine(&ExpertVectors::logit_gram);
  combine(&ExpertVectors::routed_activation);
  combine(&ExpertVectors::routed_output);
  combine(&ExpertVectors::output_square);
  combine(&ExpertVectors::input_max, true);
  combine(&ExpertVectors::router_input_max, true);
  combine(&ExpertVectors::marker_count);
  combine(&ExpertVectors::marker_tokens);
  combine(&ExpertVectors::all_tokens);
  combine(&ExpertVectors::activation);
  combine(&ExpertVectors::output);
  combine(&ExpertVectors::quantisation_error);
}

void ExpertVectors::add_samples(const ExpertVectors& other) {
  const auto picks = smallest(sample_key, other.sample_key, size(sample_limit));
  const std::size_t row = size(width);
  std::vector<double> keys;
  std::vector<float> activations;
  activations.reserve(size(experts) * picks.size() * row);
  for (const Pick& pick : picks) keys.push_back(pick.key);
  for (std::size_t e = 0; e < size(experts); ++e) {
    for (const Pick& pick : picks) {
      const ExpertVectors& from = pick.second ? other : *this;
      const float* values = from.sample_activations.data() + (e * from.sample_key.size() + pick.row) * row;
      activations.insert(activations.end(), values, values + row);
    }
  }
  sample_key = std::move(keys);
  sample_activations = std::move(activations);
}

}  // namespace moetrim
