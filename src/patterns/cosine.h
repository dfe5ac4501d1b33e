// Directions of vectors, private to the stage.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace moetrim {

/// The vector at length 1; one of zeros stays as it is.
inline std::vector<double> unit(std::vector<double> values) {
  const double length = std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
  if (length > 0) std::for_each(values.begin(), values.end(), [&](double& value) { value /= length; });
  return values;
}

/// 1 - cosine, of unit vectors.
inline double cosine_distance(const std::vector<double>& a, const std::vector<double>& b) {
  return std::max(0.0, 1 - std::inner_product(a.begin(), a.end(), b.begin(), 0.0));
}

}  // namespace moetrim
