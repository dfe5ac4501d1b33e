// The knapsack behind mixed-precision plans and numbers of experts per layer: items that take one of several levels each,
// under a budget.

#include "plan/allocation/knapsack.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace moetrim {

Knapsack::Knapsack(std::span<const double> costs, std::vector<int> sizes, int budget, bool every_level)
    : sizes_(std::move(sizes)),
      items_(costs.size() / sizes_.size()),
      units_(std::min(static_cast<std::size_t>(budget), items_ * static_cast<std::size_t>(sizes_.back()))),
      patterns_(every_level ? std::size_t{1} << (sizes_.size() - 1) : 1) {
  const std::size_t states = (units_ + 1) * patterns_;
  choices_.resize(items_ * states);
  std::vector<double> after(states, std::numeric_limits<double>::infinity());
  for (std::size_t left = 0; left <= units_; ++left) after[state(left, patterns_ - 1)] = 0;
  std::vector<double> best(states);
  // From the last item to the first, so that choose() decides for the lowest first.
  for (std::size_t item = items_; item-- > 0;) {
    add_item(costs.subspan(item * sizes_.size(), sizes_.size()), after, best,
             std::span(choices_).subspan(item * states, states));
    std::swap(after, best);
  }
  least_.resize(static_cast<std::size_t>(budget) + 1);
  for (std::size_t left = 0; left < least_.size(); ++left) least_[left] = after[state(std::min(left, units_), 0)];
}

void Knapsack::add_item(std::span<const double> costs, const std::vector<double>& after, std::vector<double>& best,
                          std::span<std::uint8_t> choice) const {
  for (std::size_t left = 0; left <= units_; ++left) {
    for (std::size_t used = 0; used < patterns_; ++used) {
      double least = std::numeric_limits<double>::infinity();
      for (std::size_t level = 0; level < sizes_.size(); ++level) {
        const auto size = static_cast<std::size_t>(sizes_[level]);
        if (size > left) break;
        const double cost = costs[level] + after[state(left - size, with(used, level))];
        if (cost >= least) continue;
        least = cost;
        choice[state(left, used)] = static_cast<std::uint8_t>(level);
      }
      best[state(left, used)] = least;
    }
  }
}

std::vector<int> Knapsack::choose(int budget) const {
  std::vector<int> levels;
  std::size_t left = std::min(static_cast<std::size_t>(budget), units_);
  std::size_t used = 0;
  for (std::size_t item = 0; item < items_; ++item) {
    const std::size_t level = choices_[item * (units_ + 1) * patterns_ + state(left, used)];
    levels.push_back(static_cast<int>(level));
    left -= static_cast<std::size_t>(sizes_[level]);
    used = with(used, level);
  }
  return levels;
}

}  // namespace moetrim
