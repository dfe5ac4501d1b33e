// Between the measured points of a layer's curve.
#include <algorithm>

#include "moetrim/search.h"

namespace moetrim {

std::vector<double> interpolate(const LayerCurve& curve, std::span<const int> counts) {
  std::vector<double> costs;
  for (const int count : counts) {
    const auto above = std::lower_bound(curve.counts.begin(), curve.counts.end(), count);
    const auto i = static_cast<std::size_t>(above - curve.counts.begin());
    if (*above == count) {
      costs.push_back(curve.costs[i]);
      continue;
    }
    const double along = static_cast<double>(count - curve.counts[i - 1]) / (curve.counts[i] - curve.counts[i - 1]);
    costs.push_back((1 - along) * curve.costs[i - 1] + along * curve.costs[i]);  // infinite where either end is
  }
  return costs;
}

}  // namespace moetrim
