// One MoE layer's sums, counts and extremes in memory: indexing and adding.
#include "moetrim/statistics.h"

#include <algorithm>
#include <cstddef>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {
namespace {

struct StatFacts {
  std::string_view name;
  bool by_max;
  bool can_be_negative;
};

// In the order of Stat.
constexpr std::array<StatFacts, kStatCount> kStats{{
    {"routed_count", false, false},
    {"gate_sum", false, false},
    {"gate_square_sum", false, false},
    {"router_mass", false, false},
    {"tcess_sum", false, false},
    {"tcess_logit_sum", false, true},
    {"norm_sum", false, false},
    {"gated_norm_sum", false, false},
    {"easy_ep_sum", false, false},
    {"max_abs", true, false},
    {"max_abs_first_row", true, false},
}};

const StatFacts& facts(Stat stat) { return kStats.at(static_cast<std::size_t>(stat)); }

std::size_t size(int value) { return static_cast<std::size_t>(value); }

/// Combines block `from_block` of `from` into block `to_block` of `to`; blocks of `length` values.
void combine_block(std::vector<double>& to, int to_block, const std::vector<double>& from, int from_block,
                   std::size_t length, bool by_max) {
  double* out = to.data() + size(to_block) * length;
  const double* in = from.data() + size(from_block) * length;
  for (std::size_t i = 0; i < length; ++i) out[i] = by_max ? std::max(out[i], in[i]) : out[i] + in[i];
}

}  // namespace

std::string_view stat_name(Stat stat) { return facts(stat).name; }
bool stat_combines_by_max(Stat stat) { return facts(stat).by_max; }
bool stat_can_be_negative(Stat stat) { return facts(stat).can_be_negative; }

LayerStatistics::LayerStatistics(int layer_id, int task_count, int expert_count)
    : layer(layer_id), tasks(task_count), experts(expert_count) {
  if (layer < 0 || tasks < 1 || experts < 1) {
    throw InvalidInput(fmt::format("statistics of layer {} need at least one task and one expert, got {} and {}", layer,
                                   tasks, experts));
  }
  const std::size_t slices = size(tasks) * kSlices;
  token_count.assign(slices, 0.0);
  coactivation.assign(size(tasks) * size(experts) * size(experts), 0.0);
  transitions = coactivation;
  for (auto& values : values_) values.assign(slices * size(experts), 0.0);
}

std::span<double> LayerStatistics::values(Stat stat) { return values_.at(size(static_cast<int>(stat))); }
std::span<const double> LayerStatistics::values(Stat stat) const { return values_.at(size(static_cast<int>(stat))); }

double& LayerStatistics::at(Stat stat, int task, int slice, int expert) {
  return values(stat)[(size(task) * kSlices + size(slice)) * size(experts) + size(expert)];
}

double LayerStatistics::at(Stat stat, int task, int slice, int expert) const {
  return values(stat)[(size(task) * kSlices + size(slice)) * size(experts) + size(expert)];
}

std::vector<double> LayerStatistics::task_total(Stat stat, int task) const {
  const bool by_max = stat_combines_by_max(stat);
  const auto all = values(stat).subspan(size(task) * kSlices * size(experts), kSlices * size(experts));
  std::vector<double> total(size(experts), 0.0);
  for (std::size_t i = 0; i < all.size(); ++i) {
    double& sum = total[i % size(experts)];
    sum = by_max ? std::max(sum, all[i]) : sum + all[i];
  }
  return total;
}

double LayerStatistics::task_tokens(int task) const {
  double sum = 0;
  for (int slice = 0; slice < kSlices; ++slice) sum += token_count[size(task) * kSlices + size(slice)];
  return sum;
}

void LayerStatistics::keep_prompts() {
  prompt_routing.resize(size(tasks) * size(experts) * size(experts), 0.0);
  prompt_count.resize(size(tasks) * size(experts), 0.0);
}

void LayerStatistics::add(const LayerStatistics& other) {
  if (tasks != other.tasks) {
    throw InvalidInput(fmt::format("layer {}: cannot add statistics of {} tasks to those of {}", layer, other.tasks, tasks));
  }
  for (int task = 0; task < tasks; ++task) add_task(task, other, task);
}

void LayerStatistics::add_task(int task, const LayerStatistics& other, int other_task) {
  if (layer != other.layer || experts != other.experts) {
    throw InvalidInput(fmt::format("cannot add statistics of layer {} ({} experts) to layer {} ({} experts)", other.layer,
                                   other.experts, layer, experts));
  }
  const std::size_t per_slice = kSlices * size(experts);
  const std::size_t pairs = size(experts) * size(experts);
  for (std::size_t stat = 0; stat < values_.size(); ++stat) {
    combine_block(values_[stat], task, other.values_[stat], other_task, per_slice, kStats[stat].by_max);
  }
  combine_block(token_count, task, other.token_count, other_task, kSlices, false);
  combine_block(coactivation, task, other.coactivation, other_task, pairs, false);
  combine_block(transitions, task, other.transitions, other_task, pairs, false);
  if (other.prompt_count.empty()) return;
  keep_prompts();
  combine_block(prompt_routing, task, other.prompt_routing, other_task, pairs, false);
  combine_block(prompt_count, task, other.prompt_count, other_task, size(experts), false);
}

LayerStatistics LayerStatistics::first_slices(int count) const {
  LayerStatistics first(layer, tasks, experts);
  for (int task = 0; task < tasks; ++task) {
    const std::size_t begin = size(task) * kSlices;
    const std::size_t slices = size(std::clamp(count, 0, kSlices));
    std::copy_n(token_count.begin() + static_cast<std::ptrdiff_t>(begin), slices,
                first.token_count.begin() + static_cast<std::ptrdiff_t>(begin));
    for (std::size_t stat = 0; stat < values_.size(); ++stat) {
      const auto offset = static_cast<std::ptrdiff_t>(begin * size(experts));
      std::copy_n(values_[stat].begin() + offset, slices * size(experts), first.values_[stat].begin() + offset);
    }
  }
  return first;
}

}  // namespace moetrim
