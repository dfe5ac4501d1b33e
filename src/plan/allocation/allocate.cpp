// How many experts every layer keeps, when what each number costs is known.

#include "moetrim/allocation.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "plan/allocation/knapsack.h"

namespace moetrim {
namespace {

constexpr std::size_t kMostCounts = 256;  // a level of the knapsack is a byte

void check_counts(std::span<const int> counts) {
  const bool ascending = std::adjacent_find(counts.begin(), counts.end(), std::greater_equal<>()) == counts.end();
  if (!counts.empty() && counts.size() <= kMostCounts && counts.front() > 0 && ascending) return;
  throw UsageError(fmt::format("allocation: expected up to {} ascending numbers of experts above 0", kMostCounts));
}

void check_costs(std::span<const std::vector<double>> costs, std::size_t counts) {
  for (std::size_t layer = 0; layer < costs.size(); ++layer) {
    const auto& of_layer = costs[layer];
    const bool sound = std::none_of(of_layer.begin(), of_layer.end(), [](double cost) {
      return std::isnan(cost) || cost == -std::numeric_limits<double>::infinity();
    });
    if (sound && of_layer.size() == counts) continue;
    throw UsageError(fmt::format("allocation: expected {} costs of MoE layer number {}, each a number or infinity", counts,
                                 layer));
  }
}

/// The smallest total that every layer can do with.
std::int64_t least_total(std::span<const std::vector<double>> costs, std::span<const int> counts) {
  std::int64_t least = 0;
  for (std::size_t layer = 0; layer < costs.size(); ++layer) {
    const auto& of_layer = costs[layer];
    const auto possible = std::find_if(of_layer.begin(), of_layer.end(), [](double cost) { return std::isfinite(cost); });
    if (possible == of_layer.end()) {
      throw InvalidInput(fmt::format("allocation: MoE layer number {} can keep none of the {} numbers of experts; offer more",
                                     layer, counts.size()));
    }
    least += counts[static_cast<std::size_t>(possible - of_layer.begin())];
  }
  return least;
}

/// The numbers in units of their greatest common step, from the smallest on.
std::vector<int> in_units(std::span<const int> counts, int unit) {
  std::vector<int> sizes;
  for (const int count : counts) sizes.push_back((count - counts.front()) / unit);
  return sizes;
}

int common_step(std::span<const int> counts) {
  int step = 0;
  for (const int count : counts) step = std::gcd(step, count - counts.front());
  return std::max(step, 1);
}

}  // namespace

std::vector<int> allocate(std::span<const std::vector<double>> costs, std::span<const int> counts, std::int64_t total) {
  check_counts(counts);
  check_costs(costs, counts.size());
  if (costs.empty()) return {};
  const std::int64_t least = least_total(costs, counts);
  if (total < least) {
    throw InvalidInput(fmt::format("allocation: {} experts in {} layers are too few; at least {} must stay", total,
                                   costs.size(), least));
  }
  const int unit = common_step(counts);
  const auto layers = static_cast<std::int64_t>(costs.size());
  const std::int64_t above = std::min(total - layers * counts.front(), layers * (counts.back() - counts.front())) / unit;
  if (above > std::numeric_limits<int>::max()) throw UsageError("allocation: more experts than any model has");
  std::vector<double> flat;
  for (const auto& of_layer : costs) flat.insert(flat.end(), of_layer.begin(), of_layer.end());
  const Knapsack knapsack(flat, in_units(counts, unit), static_cast<int>(above), false);
  return knapsack.choose(static_cast<int>(above));
}

}  // namespace moetrim
