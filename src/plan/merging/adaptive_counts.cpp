// M-SMoE's number of groups per layer: one threshold on usage over all layers.
// Source: arXiv:2310.01334 and its code.
#include <algorithm>
#include <functional>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/merging.h"

namespace moetrim {
namespace {

/// To sum 1; the most used that is not fixed, and those that are, to 1. All experts of a layer that nobody used share alike.
std::vector<double> shares(const std::vector<double>& usage, const std::vector<bool>& fixed) {
  const double sum = std::accumulate(usage.begin(), usage.end(), 0.0);
  std::vector<double> out;
  for (const double value : usage) out.push_back(sum > 0 ? value / sum : 1 / static_cast<double>(usage.size()));
  std::size_t most = out.size();
  for (std::size_t i = 0; i < out.size(); ++i) {
    const bool is_fixed = !fixed.empty() && fixed[i];
    if (!is_fixed && (most == out.size() || out[i] > out[most])) most = i;
    if (is_fixed) out[i] = 1;
  }
  if (most < out.size()) out[most] = 1;
  return out;
}

}  // namespace

std::vector<int> adaptive_counts(const std::vector<std::vector<double>>& usage, const std::vector<std::vector<bool>>& fixed,
                                 int average) {
  std::vector<std::vector<double>> layers;
  std::vector<double> all;
  for (std::size_t l = 0; l < usage.size(); ++l) {
    layers.push_back(shares(usage[l], fixed.empty() ? std::vector<bool>{} : fixed[l]));
    all.insert(all.end(), layers[l].begin(), layers[l].end());
  }
  std::sort(all.begin(), all.end(), std::greater<>());
  const std::size_t budget = std::min(static_cast<std::size_t>(average) * usage.size(), all.size() - 1);
  const double threshold = all[budget];
  if (threshold >= 1) {
    throw InvalidInput(fmt::format("merge-to {}: {} experts in all are the most used of their layer or protected; keep more",
                                   average, std::count(all.begin(), all.end(), 1.0)));
  }
  std::vector<int> counts;
  for (const auto& layer : layers) {
    counts.push_back(static_cast<int>(std::count_if(layer.begin(), layer.end(), [&](double u) { return u > threshold; })));
  }
  return counts;
}

}  // namespace moetrim
