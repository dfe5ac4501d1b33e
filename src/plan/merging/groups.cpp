// Labels and weights to groups.
#include "plan/merging/groups.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace moetrim {
namespace {

/// An unused group would be 0/0: the published HC-SMoE makes zeros of it, here it is the plain mean.
void normalise(std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  const auto count = static_cast<double>(weights.size());
  for (double& weight : weights) weight = sum > 0 ? weight / sum : 1 / count;
}

}  // namespace

std::vector<int> by_first_appearance(std::span<const int> labels) {
  std::map<int, int> numbers;
  std::vector<int> out;
  for (const int label : labels) out.push_back(numbers.try_emplace(label, static_cast<int>(numbers.size())).first->second);
  return out;
}

std::vector<int> descending(std::span<const double> values) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  return order;
}

std::vector<MergeGroup> groups_into(std::span<const int> labels, std::span<const int> into,
                                    std::span<const double> weights) {
  std::vector<MergeGroup> groups(into.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    MergeGroup& group = groups[static_cast<std::size_t>(labels[i])];
    group.members.push_back(static_cast<int>(i));
    group.weights.push_back(weights[i]);
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    groups[g].into = into[g];
    normalise(groups[g].weights);
  }
  std::sort(groups.begin(), groups.end(),
            [](const MergeGroup& a, const MergeGroup& b) { return a.members.front() < b.members.front(); });
  return groups;
}

std::vector<MergeGroup> groups_of(std::span<const int> labels, std::span<const double> weights) {
  std::vector<int> into;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto label = static_cast<std::size_t>(labels[i]);
    if (label == into.size()) into.push_back(static_cast<int>(i));
    if (weights[i] > weights[static_cast<std::size_t>(into[label])]) into[label] = static_cast<int>(i);
  }
  return groups_into(labels, into, weights);
}

}  // namespace moetrim
