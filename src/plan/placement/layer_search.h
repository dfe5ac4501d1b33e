// One layer of a placement while the others stay.
#pragma once

#include <array>
#include <vector>

#include "plan/placement/problem.h"

namespace moetrim::placement {

/// How many of its pairs an element has on every device, and which elements of the layer should trade places.
class LayerSearch {
 public:
  /// @param placement  devices of the layer change in it
  /// @param placed     only layers [0, placed) have devices yet
  LayerSearch(const Problem& problem, Placement& placement, std::size_t layer, std::size_t placed);

  /// Pairs that cost less with the element on that device than with all others elsewhere: the more, the better.
  double gain(int element, int device) const;
  /// Elements, and where there are blocks whole blocks, trade places while the objective falls, or stays and the load gets
  /// more even. @return whether any did
  bool improve();

 private:
  void count();
  double trade_value(int a, int b) const;
  double load_change(int a, int b, double& evenness) const;
  void find_fullest();
  bool helps(int a, int b) const;
  void trade(int a, int b);
  bool trade_elements();
  int run_of(int block) const;
  double block_trade_value(int a, int b) const;
  bool trade_blocks();

  const Problem& problem_;
  Placement& placement_;
  std::size_t layer_, placed_;
  std::vector<int>& own_;
  std::vector<double> near_;       // [n, devices] an element's pairs with what lies on the device
  std::vector<double> near_node_;  // [n, nodes] the same for nodes
  std::vector<double> load_;       // [devices]
  std::array<std::size_t, 3> fullest_{};  // devices by descending load
  double most_saved_ = 0;          // of the objective, were the load even
};

}  // namespace moetrim::placement
