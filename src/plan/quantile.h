// Quantiles, private to the stage.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace moetrim {

/// Linear interpolation between the two nearest ranks, as numpy and torch do by default. @param sorted  ascending, not empty
inline double quantile(const std::vector<double>& sorted, double share) {
  const double rank = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(rank);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (rank - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace moetrim
