// The placement problem in matrices: elements (experts, or whole groups of them) of every layer to devices.
#pragma once

#include <cstddef>
#include <vector>

namespace moetrim::placement {

using Matrix = std::vector<double>;  // row-major

/// Devices of equal size, dealt to nodes in order.
struct Devices {
  int count = 1;
  int nodes = 1;

  int node(int device) const { return device * nodes / count; }
  /// 0 on one device, 1 on two, 2 on two nodes.
  double cost(int a, int b) const { return a == b ? 0 : node(a) == node(b) ? 1 : 2; }
};

struct LayerFlow {
  Matrix next;     ///< [n, n] pairs (here, in the next layer); all zeros in the last one
  Matrix beside;   ///< [n, n] pairs of one layer, symmetric, diagonal 0
  std::vector<double> load;  ///< [n] routed tokens
};

/// n elements a layer, as many on every device. With `blocks`, elements and devices are in so many runs of equal length: a
/// run of elements stays on one run of devices, whichever.
struct Problem {
  int elements = 0;
  Devices devices;
  int blocks = 1;
  std::vector<LayerFlow> layers;
  double pair_weight = 0;   ///< of one pair's cost in the objective
  double load_weight = 0;   ///< of one token on the fullest device of a layer

  std::size_t size() const { return static_cast<std::size_t>(elements); }
  int per_device() const { return elements / devices.count; }
  int block_of(int element) const { return element * blocks / elements; }
  int devices_per_block() const { return devices.count / blocks; }
};

/// Device of every element: [layers][n].
using Placement = std::vector<std::vector<int>>;

/// Element i of every layer on device i G / n.
Placement in_order(const Problem& problem);
/// The objective.
double value(const Problem& problem, const Placement& placement);
/// The best placement found from the order given and several others. Deterministic.
Placement solve(const Problem& problem, unsigned long long seed);

}  // namespace moetrim::placement
