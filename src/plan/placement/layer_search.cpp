// One layer of a placement while the others stay.
#include "plan/placement/layer_search.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace moetrim::placement {
namespace {

// The objective is a mean: of the order of one. Smaller changes than this are rounding.
constexpr double kRounding = 1e-12;

}  // namespace

LayerSearch::LayerSearch(const Problem& problem, Placement& placement, std::size_t layer, std::size_t placed)
    : problem_(problem), placement_(placement), layer_(layer), placed_(placed), own_(placement[layer]) {
  count();
}

void LayerSearch::count() {
  const std::size_t n = problem_.size();
  const auto devices = static_cast<std::size_t>(problem_.devices.count);
  const auto nodes = static_cast<std::size_t>(problem_.devices.nodes);
  near_.assign(n * devices, 0);
  near_node_.assign(n * nodes, 0);
  load_.assign(devices, 0);
  const auto add = [&](std::size_t element, int device, double pairs) {
    near_[element * devices + static_cast<std::size_t>(device)] += pairs;
    near_node_[element * nodes + static_cast<std::size_t>(problem_.devices.node(device))] += pairs;
  };
  const LayerFlow& flow = problem_.layers[layer_];
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      if (layer_ > 0) add(j, placement_[layer_ - 1][i], problem_.layers[layer_ - 1].next[i * n + j]);
      if (layer_ + 1 < placed_) add(i, placement_[layer_ + 1][j], flow.next[i * n + j]);
      if (layer_ < placed_) add(i, own_[j], flow.beside[i * n + j]);
    }
  }
  if (layer_ >= placed_) return;
  for (std::size_t e = 0; e < n; ++e) load_[static_cast<std::size_t>(own_[e])] += flow.load[e];
  find_fullest();
}

/// Whatever two devices trade, one of the three fullest is not among them.
void LayerSearch::find_fullest() {
  fullest_.fill(load_.size());
  for (std::size_t d = 0; d < load_.size(); ++d) {
    std::size_t carried = d;
    for (std::size_t& place : fullest_) {
      if (place == load_.size() || load_[carried] > load_[place]) std::swap(carried, place);
      if (carried == load_.size()) break;
    }
  }
  const double mean = std::accumulate(load_.begin(), load_.end(), 0.0) / static_cast<double>(load_.size());
  most_saved_ = problem_.load_weight * (load_[fullest_[0]] - mean);
}

double LayerSearch::gain(int element, int device) const {
  const auto e = static_cast<std::size_t>(element);
  const double here = near_[e * static_cast<std::size_t>(problem_.devices.count) + static_cast<std::size_t>(device)];
  if (problem_.devices.nodes == 1) return here;
  return here + near_node_[e * static_cast<std::size_t>(problem_.devices.nodes) +
                           static_cast<std::size_t>(problem_.devices.node(device))];
}

/// By how much the objective's pairs change.
double LayerSearch::trade_value(int a, int b) const {
  const int from = own_[static_cast<std::size_t>(a)];
  const int to = own_[static_cast<std::size_t>(b)];
  // Their own pair costs the same afterwards; the gains take each to be where the other was.
  const double between =
      problem_.layers[layer_].beside[static_cast<std::size_t>(a) * problem_.size() + static_cast<std::size_t>(b)];
  const double gained = gain(a, to) + gain(b, from) - gain(a, from) - gain(b, to);
  return problem_.pair_weight * (2 * between * problem_.devices.cost(from, to) - gained);
}

/// By how much the fullest device changes, and, as `evenness`, the squares of the loads.
double LayerSearch::load_change(int a, int b, double& evenness) const {
  const auto from = static_cast<std::size_t>(own_[static_cast<std::size_t>(a)]);
  const auto to = static_cast<std::size_t>(own_[static_cast<std::size_t>(b)]);
  const auto& load = problem_.layers[layer_].load;
  const double moved = load[static_cast<std::size_t>(a)] - load[static_cast<std::size_t>(b)];
  const double after_from = load_[from] - moved;
  const double after_to = load_[to] + moved;
  evenness = after_from * after_from + after_to * after_to - load_[from] * load_[from] - load_[to] * load_[to];
  double after = std::max(after_from, after_to);
  for (const std::size_t d : fullest_) {
    if (d != load_.size() && d != from && d != to) after = std::max(after, load_[d]);
  }
  return problem_.load_weight * (after - load_[fullest_[0]]);
}

bool LayerSearch::helps(int a, int b) const {
  const double pairs = trade_value(a, b);
  if (pairs > most_saved_ + kRounding) return false;
  double evenness = 0;
  const double change = pairs + load_change(a, b, evenness);
  return change < -kRounding || (change <= kRounding && evenness < -kRounding);
}

void LayerSearch::trade(int a, int b) {
  const std::size_t n = problem_.size();
  const auto i = static_cast<std::size_t>(a);
  const auto j = static_cast<std::size_t>(b);
  const auto from = static_cast<std::size_t>(own_[i]);
  const auto to = static_cast<std::size_t>(own_[j]);
  const auto from_node = static_cast<std::size_t>(problem_.devices.node(own_[i]));
  const auto to_node = static_cast<std::size_t>(problem_.devices.node(own_[j]));
  const auto& flow = problem_.layers[layer_];
  for (std::size_t e = 0; e < n; ++e) {
    const double moved = flow.beside[i * n + e] - flow.beside[j * n + e];
    double* row = near_.data() + e * load_.size();
    row[from] -= moved;
    row[to] += moved;
    double* nodes = near_node_.data() + e * static_cast<std::size_t>(problem_.devices.nodes);
    nodes[from_node] -= moved;
    nodes[to_node] += moved;
  }
  load_[from] += flow.load[j] - flow.load[i];
  load_[to] += flow.load[i] - flow.load[j];
  std::swap(own_[i], own_[j]);
  find_fullest();
}

bool LayerSearch::trade_elements() {
  bool any = false;
  for (int a = 0; a < problem_.elements; ++a) {
    for (int b = a + 1; b < problem_.elements && problem_.block_of(b) == problem_.block_of(a); ++b) {
      if (own_[static_cast<std::size_t>(a)] == own_[static_cast<std::size_t>(b)] || !helps(a, b)) continue;
      trade(a, b);
      any = true;
    }
  }
  return any;
}

/// By how much the objective changes when two blocks trade their runs. Loads go with their devices, so pairs alone change.
double LayerSearch::block_trade_value(int a, int b) const {
  const int size = problem_.elements / problem_.blocks;
  const int shift = run_of(b) - run_of(a);
  struct Move {
    int element, from, to;
  };
  std::vector<Move> moves;
  for (const auto& [block, by] : {std::pair(a, shift), std::pair(b, -shift)}) {
    for (int e = block * size; e < (block + 1) * size; ++e) {
      const int from = own_[static_cast<std::size_t>(e)];
      moves.push_back({.element = e, .from = from, .to = from + by * problem_.devices_per_block()});
    }
  }
  const auto& beside = problem_.layers[layer_].beside;
  const Devices& devices = problem_.devices;
  double change = 0;
  for (std::size_t i = 0; i < moves.size(); ++i) {
    const Move& e = moves[i];
    change += gain(e.element, e.from) - gain(e.element, e.to);
    for (std::size_t j = 0; j < i; ++j) {
      const Move& f = moves[j];
      // The gains take each of two that move to stay where it was for the other.
      change += beside[static_cast<std::size_t>(e.element) * problem_.size() + static_cast<std::size_t>(f.element)] *
                (devices.cost(e.to, f.to) + devices.cost(e.from, f.from) - devices.cost(e.to, f.from) -
                 devices.cost(e.from, f.to));
    }
  }
  return problem_.pair_weight * change;
}

int LayerSearch::run_of(int block) const {
  const int first = block * (problem_.elements / problem_.blocks);
  return own_[static_cast<std::size_t>(first)] / problem_.devices_per_block();
}

bool LayerSearch::trade_blocks() {
  bool any = false;
  for (int a = 0; a < problem_.blocks; ++a) {
    for (int b = a + 1; b < problem_.blocks; ++b) {
      if (block_trade_value(a, b) >= -kRounding) continue;
      const int shift = (run_of(b) - run_of(a)) * problem_.devices_per_block();
      for (int e = 0; e < problem_.elements; ++e) {
        const int block = problem_.block_of(e);
        if (block == a || block == b) own_[static_cast<std::size_t>(e)] += block == a ? shift : -shift;
      }
      count();
      any = true;
    }
  }
  return any;
}

bool LayerSearch::improve() {
  bool any = false;
  while (trade_elements() || (problem_.blocks > 1 && trade_blocks())) any = true;
  return any;
}

}  // namespace moetrim::placement
