// Statistics on request of one MoE layer and one token group.

#include "calibrate/vector_measure.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "moetrim/split_mix.h"

namespace moetrim {

namespace {

static_assert(kQuantisedRuns == kQuantisationBits);

std::uint64_t hashed(std::uint64_t seed, std::string_view text) {
  for (const char c : text) seed = mix_bits(seed * 31 + static_cast<unsigned char>(c) + 1);
  return seed;
}

/// Says which tokens are sampled, whatever shares and groups they come in. A whole number below 2^53.
double sample_key(std::uint64_t of_task, std::int64_t demonstration, std::int64_t position) {
  const std::uint64_t of_demonstration = mix_bits(of_task + static_cast<std::uint64_t>(demonstration));
  return static_cast<double>(mix_bits(of_demonstration + static_cast<std::uint64_t>(position)) >> 11);
}

}  // namespace

VectorMeasure::VectorMeasure(const std::vector<Task>& tasks, const StatisticsManifest::Vectors& facts, const TokenGroup& group,
                             std::vector<MeasuredSequence> sequences, ExpertVectors earlier, bool first)
    : facts_(facts), group_(group), sequences_(std::move(sequences)), vectors_(std::move(earlier)) {
  task_.assign(group.batch.ids.size(), -1);
  demonstration_.assign(group.batch.ids.size(), 0);
  std::int32_t number = 0;
  for (const MeasuredSequence& sequence : sequences_) {
    std::fill_n(demonstration_.begin() + sequence.begin, sequence.length, number++);
    std::fill(task_.begin() + sequence.count_begin, task_.begin() + sequence.count_end, sequence.task);
  }
  samples_.experts = vectors_.experts;
  samples_.width = vectors_.width;
  if (facts.all_experts) choose_common_tokens(tasks);
  bind(first);
}

void VectorMeasure::choose_common_tokens(const std::vector<Task>& tasks) {
  std::vector<std::uint64_t> of_task;
  for (const Task& task : tasks) of_task.push_back(hashed(hashed(0, task.name), task.digest));
  std::vector<double> keys;
  for (const MeasuredSequence& sequence : sequences_) {
    const auto task = static_cast<std::size_t>(sequence.task);
    std::int64_t end = sequence.count_end;
    if (facts_.all_experts_tokens > 0) end = std::min(end, sequence.count_begin + facts_.all_experts_tokens);
    for (std::int64_t t = sequence.count_begin; t < end; ++t) {
      common_tokens_.push_back(static_cast<std::int32_t>(t));
      keys.push_back(sample_key(of_task[task], sequence.demonstration, t - sequence.begin));
      vectors_.all_tokens[task] += 1;
    }
  }
  choose_samples(keys);
}

/// Of this group's tokens those with the smallest keys; which of them stay is found when they are added to the earlier ones.
void VectorMeasure::choose_samples(const std::vector<double>& keys) {
  sample_rows_.assign(keys.size(), -1);
  const std::size_t count = std::min(keys.size(), static_cast<std::size_t>(facts_.activation_samples));
  std::vector<std::size_t> order(keys.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::size_t a, std::size_t b) { return keys[a] != keys[b] ? keys[a] < keys[b] : a < b; });
  for (std::size_t row = 0; row < count; ++row) {
    samples_.sample_key.push_back(keys[order[row]]);
    sample_rows_[order[row]] = static_cast<std::int32_t>(row);
  }
  const auto values = static_cast<std::size_t>(samples_.experts) * static_cast<std::size_t>(samples_.width);
  samples_.sample_activations.resize(count * values);
}

void VectorMeasure::bind(bool first) {
  sums_ = {.tasks = vectors_.tasks,
           .task = task_,
           .demonstration = demonstration_,
           .common_tokens = common_tokens_,
           .sample_rows = sample_rows_,
           .logit_gram = vectors_.logit_gram,
           .routed_activation = vectors_.routed_activation,
           .routed_output = vectors_.routed_output,
           .output_square = vectors_.output_square,
           .input_max = vectors_.input_max,
           .router_input_max = vectors_.router_input_max,
           .weight_max = first ? std::span<double>(vectors_.weight_max) : std::span<double>(),
           .all_tokens = vectors_.all_tokens,
           .activation = vectors_.activation,
           .output = vectors_.output,
           .sample_activations = samples_.sample_activations,
           .quantisation_error = vectors_.quantisation_error};
}

ExpertVectors VectorMeasure::finish(const RoutedLayer& routed) {
  count_markers(routed);
  vectors_.add_samples(samples_);
  return std::move(vectors_);
}

void VectorMeasure::count_markers(const RoutedLayer& routed) {
  const auto experts = static_cast<std::size_t>(routed.experts);
  for (std::size_t m = 0; m < facts_.markers.size(); ++m) {
    const std::vector<bool> marked = marked_tokens(group_, facts_.markers[m]);
    for (std::size_t t = 0; t < task_.size(); ++t) {
      if (task_[t] < 0 || !marked[t]) continue;
      const std::size_t row = static_cast<std::size_t>(task_[t]) * facts_.markers.size() + m;
      vectors_.marker_tokens[row] += 1;
      for (const std::int32_t expert : routed.ids_of(static_cast<std::int64_t>(t), 1)) {
        vectors_.marker_count[row * experts + static_cast<std::size_t>(expert)] += 1;
      }
    }
  }
}

std::vector<bool> marked_tokens(const TokenGroup& group, const StatisticsManifest::Vectors::Marker& marker) {
  const auto& ids = group.batch.ids;
  std::vector<bool> marked(ids.size(), false);
  for (const MeasuredSequence& sequence : group.sequences) {
    const auto end = ids.begin() + sequence.begin + sequence.length;
    for (const auto& spelling : marker.spellings) {
      for (auto at = ids.begin() + sequence.begin; (at = std::search(at, end, spelling.begin(), spelling.end())) != end; ++at) {
        std::fill_n(marked.begin() + (at - ids.begin()), spelling.size(), true);
      }
    }
  }
  return marked;
}

std::uint64_t vector_file_bytes(const Model& model, std::size_t tasks, const StatisticsManifest::Vectors& facts) {
  const auto experts = static_cast<std::uint64_t>(model.experts);
  const auto width = static_cast<std::uint64_t>(model.expert_width);
  const auto hidden = static_cast<std::uint64_t>(model.hidden);
  std::uint64_t of_task = experts * (experts + width + 2 * hidden + 1) + hidden + facts.markers.size() * (experts + 1);
  if (facts.all_experts) of_task += experts * (width + hidden) + 1;
  if (facts.quantisation) of_task += experts * kQuantisationBits;
  const auto samples = static_cast<std::uint64_t>(facts.activation_samples);
  return 8 * (tasks * of_task + hidden + samples) + 4 * experts * samples * width;
}

std::uint64_t vector_memory(const Model& model, std::size_t tasks, const StatisticsManifest::Vectors& facts) {
  // The samples so far, those of the group, and what is chosen of both.
  const auto values = static_cast<std::uint64_t>(model.experts * model.expert_width * facts.activation_samples);
  return vector_file_bytes(model, tasks, facts) + 2 * sizeof(float) * values;
}

}  // namespace moetrim
