// Scores to a sum of 1.
#include "score/normalise.h"

#include <cmath>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {
namespace {

/// By magnitude, since published TCESS scores may be negative and could cancel.
double magnitude(const std::vector<double>& scores) {
  double sum = 0;
  for (const double value : scores) sum += std::abs(value);
  return sum;
}

void divide(std::vector<double>& scores, double sum, std::string_view method) {
  if (!std::isfinite(sum)) {
    throw InvalidInput(
        fmt::format("the sum of the {} scores is {}; the statistics hold values too large to add", method, sum));
  }
  if (sum == 0) return;
  for (double& value : scores) value /= sum;
}

}  // namespace

void normalise(LayerScores& layers, Grain grain, std::string_view method) {
  double all = 0;
  for (const auto& scores : layers) all += magnitude(scores);
  for (auto& scores : layers) divide(scores, grain == Grain::atom ? all : magnitude(scores), method);
}

void add_weighted(LayerScores& sum, double weight, const LayerScores& scores) {
  if (sum.empty()) {
    for (const auto& layer : scores) sum.emplace_back(layer.size(), 0.0);
  }
  for (std::size_t l = 0; l < sum.size(); ++l) {
    for (std::size_t i = 0; i < sum[l].size(); ++i) sum[l][i] += weight * scores[l][i];
  }
}

}  // namespace moetrim
