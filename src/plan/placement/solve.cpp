// Placements from several starts, each improved layer by layer.
#include <algorithm>
#include <numeric>

#include "moetrim/matrix.h"
#include "moetrim/split_mix.h"
#include "plan/placement/layer_search.h"
#include "plan/placement/problem.h"

namespace moetrim::placement {
namespace {

// Small problems are quick and have few ways out of a bad start, so they get more starts.
constexpr int kLeastRandomStarts = 6;
constexpr int kMostRandomStarts = 100;
constexpr double kPairsOfAllStarts = 4e6;
constexpr double kRounding = 1e-12;

/// The elements of a block to the devices of a run, so that their gains are greatest.
void assign_block(const Problem& problem, const LayerSearch& search, int block, int run, std::vector<int>& devices) {
  const int size = problem.elements / problem.blocks;
  const auto n = static_cast<std::size_t>(size);
  const auto device_of = [&](int column) { return run * problem.devices_per_block() + column / problem.per_device(); };
  std::vector<double> gains(n * n);
  for (int row = 0; row < size; ++row) {
    for (int column = 0; column < size; ++column) {
      gains[static_cast<std::size_t>(row) * n + static_cast<std::size_t>(column)] =
          search.gain(block * size + row, device_of(column));
    }
  }
  const auto columns = optimal_assignment(gains, n, Optimum::greatest);
  for (int row = 0; row < size; ++row) {
    devices[static_cast<std::size_t>(block * size + row)] = device_of(columns[static_cast<std::size_t>(row)]);
  }
}

/// Blocks to runs of devices by the gains of their elements, spread over the run.
std::vector<int> assign_runs(const Problem& problem, const LayerSearch& search) {
  if (problem.blocks == 1) return {0};
  const auto n = static_cast<std::size_t>(problem.blocks);
  std::vector<double> gains(n * n);
  for (int e = 0; e < problem.elements; ++e) {
    double* row = gains.data() + static_cast<std::size_t>(problem.block_of(e)) * n;
    for (int d = 0; d < problem.devices.count; ++d) row[d / problem.devices_per_block()] += search.gain(e, d);
  }
  return optimal_assignment(gains, n, Optimum::greatest);
}

/// Every layer behind the first is assigned to the one before it.
void chain(const Problem& problem, Placement& placement) {
  for (std::size_t l = 1; l < placement.size(); ++l) {
    const LayerSearch search(problem, placement, l, l);
    const auto runs = assign_runs(problem, search);
    std::vector<int> devices(problem.size());
    for (int block = 0; block < problem.blocks; ++block) {
      assign_block(problem, search, block, runs[static_cast<std::size_t>(block)], devices);
    }
    placement[l] = std::move(devices);
  }
}

/// Elements by descending load, each to the emptiest device of its run that has room.
std::vector<int> balanced(const Problem& problem, const LayerFlow& flow) {
  std::vector<int> order(problem.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return flow.load[static_cast<std::size_t>(a)] > flow.load[static_cast<std::size_t>(b)];
  });
  std::vector<double> load(static_cast<std::size_t>(problem.devices.count));
  std::vector<int> room(load.size(), problem.per_device());
  std::vector<int> devices(problem.size());
  for (const int e : order) {
    const int first = problem.block_of(e) * problem.devices_per_block();
    int best = -1;
    for (int d = first; d < first + problem.devices_per_block(); ++d) {
      if (room[static_cast<std::size_t>(d)] == 0) continue;
      if (best < 0 || load[static_cast<std::size_t>(d)] < load[static_cast<std::size_t>(best)]) best = d;
    }
    devices[static_cast<std::size_t>(e)] = best;
    load[static_cast<std::size_t>(best)] += flow.load[static_cast<std::size_t>(e)];
    --room[static_cast<std::size_t>(best)];
  }
  return devices;
}

/// 0 to count - 1 in an order that the seed decides.
std::vector<int> shuffled(int count, std::uint64_t seed) {
  std::vector<int> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return split_mix(seed + static_cast<std::uint64_t>(a)) < split_mix(seed + static_cast<std::uint64_t>(b));
  });
  return order;
}

std::vector<int> random_layer(const Problem& problem, std::uint64_t seed) {
  const int size = problem.elements / problem.blocks;
  const auto runs = shuffled(problem.blocks, split_mix(seed));
  std::vector<int> devices(problem.size());
  for (int block = 0; block < problem.blocks; ++block) {
    const auto order = shuffled(size, split_mix(seed + 1 + static_cast<std::uint64_t>(block)));
    for (int e = 0; e < size; ++e) {
      devices[static_cast<std::size_t>(block * size + e)] =
          runs[static_cast<std::size_t>(block)] * problem.devices_per_block() +
          order[static_cast<std::size_t>(e)] / problem.per_device();
    }
  }
  return devices;
}

/// Layer after layer until none can be improved alone. One that could not is looked at again when a neighbour has changed.
void improve(const Problem& problem, Placement& placement) {
  std::vector<bool> open(placement.size(), true);
  while (std::find(open.begin(), open.end(), true) != open.end()) {
    for (std::size_t l = 0; l < placement.size(); ++l) {
      if (!open[l]) continue;
      open[l] = false;
      if (!LayerSearch(problem, placement, l, placement.size()).improve()) continue;
      if (l > 0) open[l - 1] = true;
      if (l + 1 < placement.size()) open[l + 1] = true;
    }
  }
}

/// The order given, balanced loads, a chain from the order given; then, in turn, random layers and chains from a random one.
Placement start(const Problem& problem, int number, std::uint64_t seed) {
  Placement placement = in_order(problem);
  if (number == 0) return placement;
  for (std::size_t l = 0; l < placement.size(); ++l) {
    if (number == 1) placement[l] = balanced(problem, problem.layers[l]);
    const std::uint64_t own = split_mix(split_mix(split_mix(seed) + static_cast<std::uint64_t>(number)) + l);
    if (number > 2) placement[l] = random_layer(problem, own);
  }
  if (number > 1 && number % 2 == 0) chain(problem, placement);
  return placement;
}

int starts(const Problem& problem) {
  const double pairs = static_cast<double>(problem.size() * problem.size() * problem.layers.size());
  return 3 + std::clamp(static_cast<int>(kPairsOfAllStarts / pairs), kLeastRandomStarts, kMostRandomStarts);
}

}  // namespace

Placement solve(const Problem& problem, unsigned long long seed) {
  Placement best;
  double best_value = 0;
  for (int number = 0; number < starts(problem); ++number) {
    Placement placement = start(problem, number, seed);
    improve(problem, placement);
    const double now = value(problem, placement);
    if (!best.empty() && now >= best_value - kRounding) continue;
    best = std::move(placement);
    best_value = now;
  }
  return best;
}

}  // namespace moetrim::placement
