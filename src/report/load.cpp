// How tokens are spread over experts, and tasks over experts.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "moetrim/report.h"

namespace moetrim {
namespace {

constexpr double kOwnShare = 0.9;

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

/// Of values that are not negative, as shares of their sum; in nats. 0 where there are none.
double entropy(const std::vector<double>& values) {
  const double all = sum(values);
  double out = 0;
  for (const double value : values) {
    if (value > 0) out -= value / all * std::log(value / all);
  }
  return out;
}

std::vector<double> total(const LayerStatistics& layer, Stat stat, const std::vector<int>& tasks) {
  std::vector<double> out(static_cast<std::size_t>(layer.experts));
  for (const int task : tasks) {
    const auto of_task = layer.task_total(stat, task);
    for (std::size_t e = 0; e < out.size(); ++e) out[e] += of_task[e];
  }
  return out;
}

double variation(const std::vector<double>& values) {
  const double mean = sum(values) / static_cast<double>(values.size());
  if (mean == 0) return 0;
  double square = 0;
  for (const double value : values) square += (value - mean) * (value - mean);
  return std::sqrt(square / static_cast<double>(values.size())) / mean;
}

/// Over log E; a layer with one expert has nothing to choose.
double normalised(double nats, int experts) { return experts > 1 ? nats / std::log(static_cast<double>(experts)) : 1; }

LayerLoad load_of(const LayerStatistics& layer, const std::vector<int>& tasks) {
  const auto used = total(layer, Stat::routed_count, tasks);
  const auto mass = total(layer, Stat::router_mass, tasks);
  LayerLoad out;
  out.layer = layer.layer;
  for (const int task : tasks) out.tokens += layer.task_tokens(task);
  const auto most = std::max_element(used.begin(), used.end());  // the first of equals
  const auto least = std::min_element(used.begin(), used.end());
  out.most_used = static_cast<int>(most - used.begin());
  out.least_used = static_cast<int>(least - used.begin());
  if (out.tokens > 0) {
    out.most_share = *most / out.tokens;
    out.least_share = *least / out.tokens;
  }
  out.variation = variation(used);
  out.unseen = static_cast<int>(std::count(used.begin(), used.end(), 0.0));
  out.entropy = normalised(entropy(used), layer.experts);
  if (sum(mass) > 0) out.soft_entropy = normalised(entropy(mass), layer.experts);
  return out;
}

/// Shares q_t of the tasks that have tokens.
struct Usage {
  std::vector<int> tasks;
  std::vector<double> weight;               // routed tokens
  std::vector<std::vector<double>> share;   // [tasks][E]
};

Usage usage_of(const LayerStatistics& layer, const std::vector<int>& tasks) {
  Usage usage;
  for (const int task : tasks) {
    auto share = layer.task_total(Stat::routed_count, task);
    const double all = sum(share);
    if (all == 0) continue;
    for (double& value : share) value /= all;
    usage.tasks.push_back(task);
    usage.weight.push_back(all);
    usage.share.push_back(std::move(share));
  }
  return usage;
}

/// Entropy of the weighted mean less the weighted mean of entropies, in bits; weights of sum 1.
double divergence(const Usage& usage, const std::vector<double>& weights) {
  std::vector<double> mean(usage.share.front().size());
  double within = 0;
  for (std::size_t t = 0; t < usage.share.size(); ++t) {
    for (std::size_t e = 0; e < mean.size(); ++e) mean[e] += weights[t] * usage.share[t][e];
    within += weights[t] * entropy(usage.share[t]);
  }
  return std::max(0.0, (entropy(mean) - within) / std::log(2.0));
}

std::vector<LayerSpecialisation::Own> own_experts(const Usage& usage) {
  std::vector<LayerSpecialisation::Own> own;
  for (std::size_t e = 0; e < usage.share.front().size(); ++e) {
    double all = 0;
    for (const auto& share : usage.share) all += share[e];
    for (std::size_t t = 0; t < usage.share.size() && all > 0; ++t) {
      const double share = usage.share[t][e] / all;
      if (share >= kOwnShare) own.push_back({.expert = static_cast<int>(e), .task = usage.tasks[t], .share = share});
    }
  }
  return own;
}

}  // namespace

std::vector<LayerLoad> routing_load(const Statistics& statistics, const std::vector<int>& tasks) {
  std::vector<LayerLoad> out;
  for (const LayerStatistics& layer : statistics.layers) out.push_back(load_of(layer, tasks));
  return out;
}

std::vector<LayerSpecialisation> specialisation(const Statistics& statistics, const std::vector<int>& tasks) {
  std::vector<LayerSpecialisation> out;
  for (const LayerStatistics& layer : statistics.layers) {
    LayerSpecialisation& entry = out.emplace_back();
    entry.layer = layer.layer;
    const Usage usage = usage_of(layer, tasks);
    if (usage.tasks.size() < 2) continue;
    const double all = sum(usage.weight);
    std::vector<double> by_tokens;
    for (const double weight : usage.weight) by_tokens.push_back(weight / all);
    entry.divergence =
        divergence(usage, std::vector<double>(usage.tasks.size(), 1.0 / static_cast<double>(usage.tasks.size())));
    entry.mutual_information = divergence(usage, by_tokens);
    entry.own = own_experts(usage);
  }
  return out;
}

}  // namespace moetrim
