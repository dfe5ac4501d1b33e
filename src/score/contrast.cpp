// fTRI and nPMI: how much more often an expert is used under a condition than without it.
// Sources: MoTE, arXiv:2502.11096 (difference of relative activation frequencies); RICE, arXiv:2505.14681 (nPMI).
#include "moetrim/contrast.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "moetrim/vectors.h"

namespace moetrim {
namespace {

std::vector<int> task_ids(const Statistics& statistics, const std::vector<std::string>& names) {
  std::vector<int> ids;
  for (const auto& name : names) {
    const int id = statistics.task(name);
    if (std::find(ids.begin(), ids.end(), id) != ids.end()) {
      throw UsageError(fmt::format("task {} is named twice", in_quotes(name)));
    }
    ids.push_back(id);
  }
  return ids;
}

/// Tasks' counted tokens and an expert's share of them, slice by slice.
struct Side {
  std::array<double, kSlices> tokens = {};
  std::array<double, kSlices> routed = {};

  double all_tokens() const { return std::accumulate(tokens.begin(), tokens.end(), 0.0); }
  double all_routed() const { return std::accumulate(routed.begin(), routed.end(), 0.0); }
  double rate() const { return all_routed() / all_tokens(); }

  /// Square of the jackknife's standard error of rate(), leaving out a slice at a time.
  std::optional<double> error_square() const {
    const double all = all_tokens();
    const double in = all_routed();
    std::vector<double> without;
    for (std::size_t s = 0; s < tokens.size(); ++s) {
      if (tokens[s] > 0 && tokens[s] < all) without.push_back((in - routed[s]) / (all - tokens[s]));
    }
    if (without.size() < 2) return std::nullopt;
    const auto count = static_cast<double>(without.size());
    const double mean = std::accumulate(without.begin(), without.end(), 0.0) / count;
    double sum = 0;
    for (const double rate : without) sum += (rate - mean) * (rate - mean);
    return sum * (count - 1) / count;
  }
};

Side side_of(const LayerStatistics& layer, const std::vector<int>& tasks, int expert) {
  Side side;
  for (const int task : tasks) {
    for (int slice = 0; slice < kSlices; ++slice) {
      const auto s = static_cast<std::size_t>(slice);
      side.tokens[s] += layer.token_count[static_cast<std::size_t>(task * kSlices + slice)];
      side.routed[s] += layer.at(Stat::routed_count, task, slice, expert);
    }
  }
  return side;
}

std::optional<double> agreement(const Side& side, const Side& against, double score) {
  int both = 0;
  int agree = 0;
  for (std::size_t s = 0; s < side.tokens.size(); ++s) {
    if (side.tokens[s] == 0 || against.tokens[s] == 0) continue;
    ++both;
    const double difference = side.routed[s] / side.tokens[s] - against.routed[s] / against.tokens[s];
    if (difference * score > 0 || (difference == 0 && score == 0)) ++agree;
  }
  if (both == 0) return std::nullopt;
  return static_cast<double>(agree) / both;
}

RankedExpert difference(const LayerStatistics& layer, const std::vector<int>& tasks, const std::vector<int>& against,
                        int expert) {
  const Side a = side_of(layer, tasks, expert);
  const Side b = side_of(layer, against, expert);
  RankedExpert entry{.layer = layer.layer, .expert = expert, .score = a.rate() - b.rate(), .count = a.all_routed(),
                     .against_count = b.all_routed()};
  const auto error_a = a.error_square();
  const auto error_b = b.error_square();
  if (error_a && error_b) entry.standard_error = std::sqrt(*error_a + *error_b);
  entry.agreement = agreement(a, b, entry.score);
  return entry;
}

void check_counted(const Statistics& statistics, const std::vector<int>& tasks) {
  for (const LayerStatistics& layer : statistics.layers) {
    for (const int task : tasks) {
      if (layer.task_tokens(task) > 0) continue;
      throw InvalidInput(fmt::format("task {}: no token of it was counted in layer {}, so there is no frequency to compare",
                                     in_quotes(statistics.manifest.tasks[static_cast<std::size_t>(task)].name),
                                     layer.layer));
    }
  }
}

Contrast head_of(const StatisticsManifest& manifest, ContrastMeasure measure) {
  Contrast contrast;
  contrast.measure = measure;
  contrast.checkpoint_fingerprint = manifest.checkpoint_fingerprint;
  contrast.family = manifest.family;
  contrast.experts = manifest.experts;
  contrast.layers = manifest.moe_layers;
  return contrast;
}

void rank(std::vector<RankedExpert>& entries) {
  std::sort(entries.begin(), entries.end(), [](const RankedExpert& a, const RankedExpert& b) {
    return std::tuple(-a.score, a.layer, a.expert) < std::tuple(-b.score, b.layer, b.expert);
  });
}

void check_marker_counts(const MarkerCounts& counts) {
  if (counts.marker_tokens <= 0) {
    throw InvalidInput(
        fmt::format("layer {}: no counted token is part of the marker; take demonstrations that have it, or count "
                    "more of them (--count all)",
                    counts.layer));
  }
  if (counts.marker_tokens >= counts.tokens) {
    throw InvalidInput(fmt::format(
        "layer {}: every counted token is part of the marker, so there is nothing to hold it against", counts.layer));
  }
  for (std::size_t e = 0; e < counts.routed.size(); ++e) {
    const double both = counts.marker[e];
    const double others = counts.routed[e] - both;
    if (both <= counts.marker_tokens && others >= 0 && others <= counts.tokens - counts.marker_tokens) continue;
    throw InvalidInput(
        fmt::format("layer {}, expert {}: {} tokens of the marker of {} and {} routed tokens of {} contradict each "
                    "other; the statistics are damaged",
                    counts.layer, e, both, counts.marker_tokens, counts.routed[e], counts.tokens));
  }
}

RankedExpert mutual_information(const MarkerCounts& counts, int expert) {
  const auto e = static_cast<std::size_t>(expert);
  RankedExpert entry{.layer = counts.layer, .expert = expert, .score = -1, .count = counts.marker[e],
                     .against_count = counts.routed[e]};
  if (counts.marker[e] == 0) return entry;
  // Counts are whole, so a product of two is exact and independence gives exactly 0.
  const double pmi = std::log2(counts.marker[e] * counts.tokens / (counts.marker_tokens * counts.routed[e]));
  entry.pmi = pmi;
  entry.score = std::clamp(pmi / std::log2(counts.tokens / counts.marker[e]), -1.0, 1.0);
  return entry;
}

}  // namespace

std::string_view contrast_measure_name(ContrastMeasure measure) {
  return measure == ContrastMeasure::ftri ? "ftri" : "npmi";
}

Contrast contrast_tasks(const Statistics& statistics, const std::vector<std::string>& tasks,
                        const std::vector<std::string>& against, double least_count) {
  const auto a = task_ids(statistics, tasks);
  const auto b = task_ids(statistics, against);
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::find(b.begin(), b.end(), a[i]) == b.end()) continue;
    throw UsageError(fmt::format("task {} is on both sides", in_quotes(tasks[i])));
  }
  check_counted(statistics, a);
  check_counted(statistics, b);
  Contrast contrast = head_of(statistics.manifest, ContrastMeasure::ftri);
  for (const LayerStatistics& layer : statistics.layers) {
    for (int expert = 0; expert < layer.experts; ++expert) {
      const RankedExpert entry = difference(layer, a, b, expert);
      if (entry.count + entry.against_count >= least_count) contrast.ranked.push_back(entry);
    }
  }
  rank(contrast.ranked);
  contrast.source = {{"tasks", tasks}, {"against", against}, {"least_count", least_count}};
  return contrast;
}

Contrast contrast_marker(const StatisticsManifest& manifest, const std::vector<MarkerCounts>& layers, double least_count) {
  Contrast contrast = head_of(manifest, ContrastMeasure::npmi);
  for (const MarkerCounts& counts : layers) {
    check_marker_counts(counts);
    for (int expert = 0; expert < static_cast<int>(counts.routed.size()); ++expert) {
      const double routed = counts.routed[static_cast<std::size_t>(expert)];
      if (routed > 0 && routed >= least_count) contrast.ranked.push_back(mutual_information(counts, expert));
    }
  }
  rank(contrast.ranked);
  contrast.source = {{"least_count", least_count}};
  return contrast;
}

namespace {

std::size_t marker_index(const StatisticsManifest& manifest, const std::string& marker) {
  if (!manifest.vectors || manifest.vectors->markers.empty()) {
    throw InvalidInput(fmt::format(
        "marker {}: the statistics have no markers; calibrate with --statistics vectors --marker TEXT", in_quotes(marker)));
  }
  std::vector<std::string> names;
  for (const auto& known : manifest.vectors->markers) {
    if (known.text == marker) return names.size();
    names.push_back(in_quotes(known.text));
  }
  throw InvalidInput(fmt::format("marker {}: the statistics have {}", in_quotes(marker), fmt::join(names, ", ")));
}

}  // namespace

std::vector<MarkerCounts> read_marker_counts(const Statistics& statistics, const std::filesystem::path& folder,
                                             const std::string& marker, const std::vector<std::string>& names) {
  const std::size_t index = marker_index(statistics.manifest, marker);
  const std::vector<int> tasks = names.empty() ? statistics.tasks({}) : task_ids(statistics, names);
  const auto experts = static_cast<std::size_t>(statistics.manifest.experts);
  std::vector<MarkerCounts> layers;
  for (const LayerStatistics& layer : statistics.layers) {
    const ExpertVectors vectors = read_vectors(folder, statistics.manifest, layer.layer);
    MarkerCounts counts{
        .layer = layer.layer, .routed = std::vector<double>(experts), .marker = std::vector<double>(experts)};
    for (const int task : tasks) {
      const auto row = static_cast<std::size_t>(task) * static_cast<std::size_t>(vectors.markers) + index;
      const auto routed = layer.task_total(Stat::routed_count, task);
      counts.tokens += layer.task_tokens(task);
      counts.marker_tokens += vectors.marker_tokens[row];
      for (std::size_t e = 0; e < experts; ++e) {
        counts.routed[e] += routed[e];
        counts.marker[e] += vectors.marker_count[row * experts + e];
      }
    }
    layers.push_back(std::move(counts));
  }
  return layers;
}

}  // namespace moetrim
