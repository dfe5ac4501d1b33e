// The knapsack behind mixed-precision plans and numbers of experts per layer: items that take one of several levels each,
// under a budget.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moetrim {

/// Least cost of giving every item a level, for every budget at once: exact, by dynamic programming over what is left of the
/// budget and which levels were used.
class Knapsack {
 public:
  /// @param costs   [items, levels], not NaN and not minus infinity; infinity: the item cannot have that level
  /// @param sizes   of the levels in units of the budget, ascending, the first 0
  /// @param budget  the largest that will be asked for; no more than items times the largest size is used
  /// @param every_level  every level but the first must be used
  Knapsack(std::span<const double> costs, std::vector<int> sizes, int budget, bool every_level);

  /// [budget + 1]: least cost with at most that many units; infinity where nothing is possible.
  const std::vector<double>& least() const { return least_; }
  /// The level of every item with at most that many units; where costs are equal, lower items have lower levels.
  std::vector<int> choose(int budget) const;

 private:
  std::size_t state(std::size_t left, std::size_t used) const { return left * patterns_ + used; }
  /// The levels that are used once `level` is, too.
  std::size_t with(std::size_t used, std::size_t level) const {
    return patterns_ == 1 || level == 0 ? used : used | (std::size_t{1} << (level - 1));
  }
  void add_item(std::span<const double> costs, const std::vector<double>& after, std::vector<double>& best,
                std::span<std::uint8_t> choice) const;

  std::vector<int> sizes_;
  std::size_t items_ = 0, units_ = 0, patterns_ = 1;
  std::vector<std::uint8_t> choices_;  // [items, units + 1, patterns]
  std::vector<double> least_;
};

}  // namespace moetrim
