// What a placement costs.
#include "plan/placement/problem.h"

#include <algorithm>

namespace moetrim::placement {
namespace {

/// Cost of pairs between two layers, or of a layer with itself.
double pair_cost(const Problem& problem, const Matrix& pairs, const std::vector<int>& rows,
                 const std::vector<int>& columns) {
  double sum = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t j = 0; j < columns.size(); ++j) {
      if (rows[i] != columns[j]) sum += pairs[i * columns.size() + j] * problem.devices.cost(rows[i], columns[j]);
    }
  }
  return sum;
}

/// Of one layer's own pairs (each once) and its load.
double own_value(const Problem& problem, const std::vector<int>& devices, const LayerFlow& flow) {
  std::vector<double> load(static_cast<std::size_t>(problem.devices.count));
  for (std::size_t e = 0; e < devices.size(); ++e) load[static_cast<std::size_t>(devices[e])] += flow.load[e];
  const double pairs = pair_cost(problem, flow.beside, devices, devices) / 2;
  return problem.pair_weight * pairs + problem.load_weight * *std::max_element(load.begin(), load.end());
}

}  // namespace

Placement in_order(const Problem& problem) {
  std::vector<int> layer(problem.size());
  for (int e = 0; e < problem.elements; ++e) layer[static_cast<std::size_t>(e)] = e / problem.per_device();
  return Placement(problem.layers.size(), layer);
}

double value(const Problem& problem, const Placement& placement) {
  double sum = 0;
  for (std::size_t l = 0; l < placement.size(); ++l) {
    sum += own_value(problem, placement[l], problem.layers[l]);
    if (l + 1 < placement.size()) {
      sum += problem.pair_weight * pair_cost(problem, problem.layers[l].next, placement[l], placement[l + 1]);
    }
  }
  return sum;
}

}  // namespace moetrim::placement
