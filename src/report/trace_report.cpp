// Local routing consistency of a trace: SRP and SCH, with intervals over sequences.
#include <algorithm>
#include <functional>
#include <numeric>

#include "moetrim/report.h"
#include "moetrim/split_mix.h"
#include "report/segments.h"
#include "report/trace_reader.h"

namespace moetrim {
namespace {

constexpr int kMostMultiple = 4;  // caches of up to so many times K experts

/// 95% basic interval of a figure over resampled sequences.
/// @param figure  of sequences drawn so often each
std::optional<std::pair<double, double>> basic_interval(double value, std::size_t sequences, const TraceOptions& options,
                                                        const std::function<double(const std::vector<int>&)>& figure) {
  if (sequences < 2) return std::nullopt;
  std::vector<double> again;
  for (int b = 0; b < options.resamples; ++b) {
    again.push_back(figure(draw_with_replacement(sequences, split_mix(split_mix(options.seed) + static_cast<std::uint64_t>(b)))));
  }
  std::sort(again.begin(), again.end());
  const auto low = static_cast<std::size_t>(0.025 * static_cast<double>(again.size()));
  return std::pair(2 * value - again[std::min(again.size() - low, again.size() - 1)], 2 * value - again[low]);
}

void add(const UseCounts& counts, UseCounts& sum) {
  for (std::size_t c = 0; c < counts.size(); ++c) sum[c] += counts[c];
}

/// SRP of the model, sequences counted so often each.
double srp_of(const std::vector<UseCounts>& by_sequence, const std::vector<int>& times) {
  UseCounts counts(by_sequence.front().size());
  for (std::size_t s = 0; s < times.size(); ++s) {
    if (times[s] == 0) continue;
    for (std::size_t c = 0; c < counts.size(); ++c) counts[c] += std::int64_t{times[s]} * by_sequence[s][c];
  }
  return best_threshold(counts).srp;
}

/// One window's counts while layers are read.
class ConsistencyCounter {
 public:
  ConsistencyCounter(int window, std::size_t sequences) : by_sequence_(sequences, empty(window)) { out_.window = window; }

  void add_layer(std::span<const std::int32_t> ids, int experts, int top_k, const std::vector<TraceSequence>& sequences) {
    const auto by_expert = count_windows(ids, experts, top_k, sequences, out_.window, by_sequence_);
    UseCounts layer = empty(out_.window);
    std::vector<double>& own = out_.experts.emplace_back();
    for (const UseCounts& counts : by_expert) {
      add(counts, layer);
      own.push_back(best_threshold(counts).srp);
    }
    out_.layers.push_back(best_threshold(layer));
    out_.windows = std::accumulate(by_expert.front().begin(), by_expert.front().end(), std::int64_t{0});
  }

  RoutingConsistency finish(const TraceOptions& options) {
    UseCounts all = empty(out_.window);
    for (const UseCounts& counts : by_sequence_) add(counts, all);
    out_.model = best_threshold(all);
    out_.srp.value = out_.model.srp;
    std::erase_if(by_sequence_, [](const UseCounts& counts) {
      return std::all_of(counts.begin(), counts.end(), [](auto n) { return n == 0; });
    });
    out_.srp.interval = basic_interval(out_.srp.value, by_sequence_.size(), options,
                                       [&](const std::vector<int>& times) { return srp_of(by_sequence_, times); });
    return std::move(out_);
  }

 private:
  static UseCounts empty(int window) { return UseCounts(static_cast<std::size_t>(window) + 1); }

  RoutingConsistency out_;
  std::vector<UseCounts> by_sequence_;
};

/// One window's hits while layers are read.
class HitCounter {
 public:
  HitCounter(int window, int experts, int top_k, const std::vector<TraceSequence>& sequences) : top_k_(top_k) {
    out_.window = window;
    for (int multiple = 1; multiple <= kMostMultiple && multiple * top_k <= experts; ++multiple) {
      out_.sizes.push_back({.experts = multiple * top_k, .model = {}, .layers = {}});
    }
    hits_.assign(out_.sizes.size(), std::vector<double>(sequences.size()));
    for (const TraceSequence& sequence : sequences) {
      uses_.push_back(static_cast<double>((sequence.end - sequence.begin) * top_k));
    }
  }

  void add_layer(std::span<const std::int32_t> ids, int experts, const std::vector<TraceSequence>& sequences) {
    std::vector<double> of_layer(out_.sizes.size());
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      const auto ranks = cache_ranks(ids, experts, top_k_, sequences[s], out_.window);
      for (std::size_t i = 0; i < out_.sizes.size(); ++i) {
        const auto hits =
            static_cast<double>(std::accumulate(ranks.begin(), ranks.begin() + out_.sizes[i].experts, std::int64_t{0}));
        hits_[i][s] += hits;
        of_layer[i] += hits;
      }
    }
    const double uses = std::accumulate(uses_.begin(), uses_.end(), 0.0);
    for (std::size_t i = 0; i < of_layer.size(); ++i) out_.sizes[i].layers.push_back(of_layer[i] / uses);
  }

  CacheHits finish(const TraceOptions& options) {
    for (std::size_t i = 0; i < out_.sizes.size(); ++i) {
      const auto layers = static_cast<double>(out_.sizes[i].layers.size());
      const auto rate = [&](const std::vector<int>& times) {
        return std::inner_product(times.begin(), times.end(), hits_[i].begin(), 0.0) /
               (layers * std::inner_product(times.begin(), times.end(), uses_.begin(), 0.0));
      };
      Estimate& model = out_.sizes[i].model;
      model.value = rate(std::vector<int>(uses_.size(), 1));
      model.interval = basic_interval(model.value, uses_.size(), options, rate);
    }
    return std::move(out_);
  }

 private:
  int top_k_;
  CacheHits out_;
  std::vector<std::vector<double>> hits_;  // [sizes][sequences], all layers
  std::vector<double> uses_;               // [sequences], of one layer
};

}  // namespace

std::optional<TraceReport> report_trace(const std::filesystem::path& folder, const StatisticsManifest& manifest,
                                        const TraceOptions& options) {
  if (!std::filesystem::exists(folder / "trace")) return std::nullopt;
  const TraceReader trace(folder / "trace", manifest);
  if (trace.layers().empty()) return std::nullopt;
  std::vector<ConsistencyCounter> consistency;
  std::vector<HitCounter> hits;
  for (const int window : options.windows) {
    consistency.emplace_back(window, trace.sequences().size());
    hits.emplace_back(window, manifest.experts, manifest.experts_per_token, trace.sequences());
  }
  for (const int layer : trace.layers()) {
    const auto ids = trace.ids(layer);
    for (auto& counter : consistency) {
      counter.add_layer(ids, manifest.experts, manifest.experts_per_token, trace.sequences());
    }
    for (auto& counter : hits) counter.add_layer(ids, manifest.experts, trace.sequences());
  }
  TraceReport out;
  out.tokens = trace.tokens();
  out.sequences = static_cast<std::int64_t>(trace.sequences().size());
  out.layers = trace.layers();
  for (auto& counter : consistency) out.consistency.push_back(counter.finish(options));
  for (auto& counter : hits) out.cache.push_back(counter.finish(options));
  return out;
}

}  // namespace moetrim
