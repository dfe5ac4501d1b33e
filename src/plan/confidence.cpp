// The kept set decided again from resampled slices.
#include "moetrim/confidence.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/split_mix.h"
#include "plan/legal_keep.h"
#include "plan/quantile.h"
#include "plan/select.h"

namespace moetrim {
namespace {

constexpr double kRarelyKept = 0.05;
constexpr double kNearlyAlwaysKept = 0.95;

/// How often each slice of a task was drawn.
using Draw = std::array<int, kSlices>;

std::vector<int> filled_slices(const LayerStatistics& layer, int task) {
  std::vector<int> filled;
  for (int slice = 0; slice < kSlices; ++slice) {
    if (layer.token_count[static_cast<std::size_t>(task * kSlices + slice)] > 0) filled.push_back(slice);
  }
  return filled;
}

Draw draw(const std::vector<int>& filled, std::uint64_t seed) {
  Draw counts = {};
  const std::vector<int> times = draw_with_replacement(filled.size(), seed);
  for (std::size_t i = 0; i < filled.size(); ++i) counts[static_cast<std::size_t>(filled[i])] = times[i];
  return counts;
}

/// [resamples][tasks]
std::vector<std::vector<Draw>> draws(const std::vector<std::vector<int>>& filled, int resamples, std::uint64_t seed) {
  std::vector<std::vector<Draw>> all(static_cast<std::size_t>(resamples));
  for (std::size_t b = 0; b < all.size(); ++b) {
    for (std::size_t task = 0; task < filled.size(); ++task) {
      all[b].push_back(draw(filled[task], split_mix(split_mix(split_mix(seed) + b) + task)));
    }
  }
  return all;
}

/// Puts a resample's sums and extremes into the first slice; the others stay empty.
void resample(const LayerStatistics& layer, const std::vector<Draw>& drawn, LayerStatistics& out) {
  for (int task = 0; task < layer.tasks; ++task) {
    const Draw& counts = drawn[static_cast<std::size_t>(task)];
    double tokens = 0;
    for (std::size_t s = 0; s < counts.size(); ++s) {
      tokens += counts[s] * layer.token_count[static_cast<std::size_t>(task * kSlices) + s];
    }
    out.token_count[static_cast<std::size_t>(task * kSlices)] = tokens;
    for (int i = 0; i < kStatCount; ++i) {
      const auto stat = static_cast<Stat>(i);
      const auto from = layer.values(stat);
      const auto to = out.values(stat);
      const auto experts = static_cast<std::size_t>(layer.experts);
      const auto row = static_cast<std::size_t>(task * kSlices) * experts;
      for (std::size_t e = 0; e < experts; ++e) {
        double value = 0;
        for (std::size_t s = 0; s < counts.size(); ++s) {
          if (counts[s] == 0) continue;
          const double part = from[row + s * experts + e];
          value = stat_combines_by_max(stat) ? std::max(value, part) : value + counts[s] * part;
        }
        to[row + e] = value;
      }
    }
  }
}

/// One layer at a time: scores of experts never look at another.
Statistics one_layer(const StatisticsManifest& manifest, LayerStatistics layer) {
  Statistics statistics;
  statistics.manifest = manifest;
  statistics.manifest.moe_layers = {layer.layer};
  statistics.layers.push_back(std::move(layer));
  return statistics;
}

KeptSetConfidence::Layer uncertain_experts(int layer, const std::vector<int>& full, const std::vector<int>& kept_counts,
                                           int resamples) {
  KeptSetConfidence::Layer out{.layer = layer, .uncertain = {}};
  for (std::size_t e = 0; e < kept_counts.size(); ++e) {
    const double share = static_cast<double>(kept_counts[e]) / resamples;
    if (share <= kRarelyKept || share >= kNearlyAlwaysKept) continue;
    const int id = static_cast<int>(e);
    out.uncertain.push_back({.expert = id, .share = share, .kept = std::binary_search(full.begin(), full.end(), id)});
  }
  return out;
}

}  // namespace

std::optional<KeptSetConfidence> kept_set_confidence(const Statistics& statistics, const MethodMix& method,
                                                     const ScoreOptions& options, const KeepBudget& budget,
                                                     const std::vector<std::pair<std::string, double>>& task_weights,
                                                     bool regroup, int resamples, std::uint64_t seed) {
  if (const ScoringMethod* part = method.second_order()) {
    throw InvalidInput(
        fmt::format("confidence: {} needs second-order statistics, which are not kept per slice", part->name));
  }
  const auto& manifest = statistics.manifest;
  const RouterLimits limits = router_limits(manifest);
  const int keep = legal_keep(limits, budget, regroup);
  const int groups = legal_counts(limits, regroup).step;
  const auto kept_of = [&](const Statistics& of) {
    return best_experts(score(of, method, options, task_weights).values[0], {}, keep, groups);
  };

  KeptSetConfidence out{.slices = kSlices, .overlap = 0, .lower = 0, .upper = 0, .layers = {}};
  std::vector<std::vector<int>> filled;
  for (int task = 0; task < static_cast<int>(manifest.tasks.size()); ++task) {
    filled.push_back(filled_slices(statistics.layers.front(), task));
    const auto& name = manifest.tasks[static_cast<std::size_t>(task)].name;
    const bool counts = task_weights.empty() || std::any_of(task_weights.begin(), task_weights.end(),
                                                            [&](const auto& w) { return w.first == name; });
    if (counts) out.slices = std::min(out.slices, static_cast<int>(filled.back().size()));
  }
  if (out.slices < 2) return std::nullopt;
  const auto drawn = draws(filled, resamples, seed);
  std::vector<double> overlaps(drawn.size());
  for (const LayerStatistics& layer : statistics.layers) {
    const std::vector<int> full = kept_of(one_layer(manifest, layer));
    Statistics again = one_layer(manifest, LayerStatistics(layer.layer, layer.tasks, layer.experts));
    std::vector<int> kept_counts(static_cast<std::size_t>(layer.experts));
    for (std::size_t b = 0; b < drawn.size(); ++b) {
      resample(layer, drawn[b], again.layers.front());
      const std::vector<int> kept = kept_of(again);
      for (const int id : kept) ++kept_counts[static_cast<std::size_t>(id)];
      overlaps[b] += overlap(kept, full) / static_cast<double>(statistics.layers.size());
    }
    out.layers.push_back(uncertain_experts(layer.layer, full, kept_counts, resamples));
  }
  std::sort(overlaps.begin(), overlaps.end());
  out.overlap = std::accumulate(overlaps.begin(), overlaps.end(), 0.0) / static_cast<double>(overlaps.size());
  out.lower = quantile(overlaps, 0.025);
  out.upper = quantile(overlaps, 0.975);
  return out;
}

}  // namespace moetrim
