// Placements against all that there are, and what they must leave alone.
#include "testing.h"

#include <algorithm>
#include <array>
#include <functional>
#include <random>
#include <set>

#include "given.h"
#include "moetrim/placement.h"
#include "plan/placement/problem.h"

using namespace moetrim;
using namespace moetrim::placement;
using moetrim::testing::Approx;

namespace {

/// Counts as routing gives them: some pairs of experts are much more common than others.
Problem random_problem(int elements, Devices devices, int layers, unsigned seed, int blocks = 1) {
  std::mt19937_64 bits(seed);
  const auto count = [&] {
    const double u = static_cast<double>(bits() >> 11U) * 0x1p-53;
    return std::floor(100 * u * u * u);
  };
  Problem problem{.elements = elements, .devices = devices, .blocks = blocks, .layers = {}};
  const auto n = static_cast<std::size_t>(elements);
  for (int l = 0; l < layers; ++l) {
    LayerFlow flow{.next = Matrix(n * n), .beside = Matrix(n * n), .load = std::vector<double>(n)};
    for (double& pairs : flow.next) pairs = l + 1 < layers ? count() : 0;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < i; ++j) flow.beside[i * n + j] = flow.beside[j * n + i] = count() / 2;
      flow.load[i] = 0.2 + count() / 100;
    }
    problem.layers.push_back(std::move(flow));
  }
  return problem;
}

/// Every layer's ways to give as many elements to each device, blocks on runs of devices.
std::vector<std::vector<int>> all_layers(const Problem& problem) {
  std::vector<int> devices = in_order(problem)[0];
  std::vector<std::vector<int>> all;
  std::sort(devices.begin(), devices.end());
  do {
    bool whole = true;
    for (int a = 0; a < problem.elements; ++a) {
      for (int b = 0; b < problem.elements; ++b) {
        const bool together = devices[static_cast<std::size_t>(a)] / problem.devices_per_block() ==
                              devices[static_cast<std::size_t>(b)] / problem.devices_per_block();
        whole = whole && (problem.block_of(a) == problem.block_of(b)) == (problem.blocks == 1 ? true : together);
      }
    }
    if (whole) all.push_back(devices);
  } while (std::next_permutation(devices.begin(), devices.end()));
  return all;
}

double best_of_all(const Problem& problem) {
  const auto choices = all_layers(problem);
  Placement placement = in_order(problem);
  double best = value(problem, placement);
  const std::function<void(std::size_t)> fill = [&](std::size_t layer) {
    if (layer == placement.size()) {
      best = std::min(best, value(problem, placement));
      return;
    }
    for (const auto& choice : choices) {
      placement[layer] = choice;
      fill(layer + 1);
    }
  };
  fill(0);
  return best;
}

}  // namespace

TEST_CASE("small placements are optimal", "[placement]") {
  for (unsigned seed = 1; seed <= 12; ++seed) {
    CAPTURE(seed);
    Problem problem = random_problem(6, {.count = 2, .nodes = 1}, seed % 2 == 0 ? 2 : 3, seed);
    const std::array<std::pair<double, double>, 3> weights{{{1e-3, 0}, {0, 1}, {1e-3, 0.5}}};
    for (const auto& [pairs, load] : weights) {
      problem.pair_weight = pairs;
      problem.load_weight = load;
      CHECK(value(problem, solve(problem, 0)) == Approx(best_of_all(problem)).epsilon(1e-12));
    }
  }
}

TEST_CASE("nodes cost twice, and blocks stay on their runs of devices", "[placement]") {
  for (unsigned seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    Problem problem = random_problem(8, {.count = 4, .nodes = 2}, 2, seed, 2);
    problem.pair_weight = 1e-3;
    const Placement placed = solve(problem, 0);
    CHECK(value(problem, placed) == Approx(best_of_all(problem)).epsilon(1e-12));
    for (const auto& layer : placed) {
      for (int e = 0; e < 8; ++e) {
        CHECK(layer[static_cast<std::size_t>(e)] / 2 == layer[static_cast<std::size_t>(e / 4 * 4)] / 2);
      }
    }
  }
  Problem far = random_problem(4, {.count = 4, .nodes = 2}, 1, 1);
  far.pair_weight = 1;
  std::fill(far.layers[0].beside.begin(), far.layers[0].beside.end(), 0.0);
  far.layers[0].beside[3] = far.layers[0].beside[3 * 4] = 5;  // experts 0 and 3: nodes 0 and 1 at first
  CHECK(value(far, in_order(far)) == 10);
  CHECK(value(far, solve(far, 0)) == 5);
}

TEST_CASE("a placed plan is a permutation that keeps groups whole, and never worse", "[placement]") {
  Statistics statistics = given::random_statistics(3, 12, 3, 2);
  for (LayerStatistics& layer : statistics.layers) {
    std::mt19937_64 bits(static_cast<unsigned>(layer.layer));
    for (double& pairs : layer.transitions) pairs = static_cast<double>(bits() % 50);
  }
  for (const int groups : {1, 3, 6}) {
    for (const int devices : {1, 2, 3, 6}) {
      if (groups % devices != 0 && devices % groups != 0) continue;
      CAPTURE(groups, devices);
      Plan base = whole_plan(statistics.manifest);
      if (groups > 1) base.groups = {.count = groups, .chosen = groups - 1, .rule = "max"};
      const PlacedPlan placed =
          place_experts(statistics, {.devices = devices, .objective = PlacementObjective::traffic}, base);
      CHECK(placed.after.mean_cost() <= placed.before.mean_cost());
      if (devices == 1) CHECK(placed.after.mean_cost() == 0);
      CHECK(placed.plan.order == SlotOrder::free);
      for (const PlanLayer& layer : placed.plan.layers) {
        CHECK(std::set(layer.keep.begin(), layer.keep.end()).size() == 12);
        const int size = 12 / groups;
        for (std::size_t slot = 0; slot < 12 && groups > 1; ++slot) {
          CHECK(layer.keep[slot] / size ==
                layer.keep[slot / static_cast<std::size_t>(size) * static_cast<std::size_t>(size)] / size);
        }
      }
      const given::TempFolder folder;
      write_plan(folder / "plan.json", placed.plan);  // which refuses what read_plan would
    }
  }
}

TEST_CASE("predicted costs by hand", "[placement]") {
  LayerStatistics first(0, 1, 4);
  LayerStatistics second(1, 1, 4);
  const auto pair = [](std::vector<double>& matrix, int i, int j, double count) {
    matrix[static_cast<std::size_t>(i * 4 + j)] += count;
  };
  for (int e = 0; e < 4; ++e) pair(first.coactivation, e, e, e + 1);  // loads 1, 2, 3, 4
  for (int e = 0; e < 4; ++e) pair(second.coactivation, e, e, 2.5);
  pair(first.coactivation, 0, 3, 6);
  pair(first.coactivation, 3, 0, 6);
  pair(first.transitions, 0, 0, 10);
  pair(first.transitions, 3, 2, 20);
  const Statistics statistics = given::statistics(given::manifest(2, 4, 2), {first, second});
  const PlacedPlan placed =
      place_experts(statistics, {.devices = 2, .objective = PlacementObjective::traffic}, whole_plan(statistics.manifest));
  CHECK(placed.before.transitions == 30);
  CHECK(placed.before.transitions_crossing == 0);  // 0 to 0 on the first device, 3 to 2 on the second
  CHECK(placed.before.coactivations_crossing == 6);
  CHECK(placed.before.worst_load == 1.4);  // 7 of 10 tokens, a mean device has 5
  CHECK(placed.before.worst_layer == 0);
  CHECK(placed.before.mean_load == Approx(1.2));
  CHECK(placed.after.mean_cost() == 0);    // 0 and 3 together, and 0 and 2 in the next layer
}

TEST_CASE("placements that cannot be are refused", "[placement]") {
  const Statistics statistics = given::random_statistics(1, 12, 3);
  const auto refused = [&](int devices, int nodes, const std::function<void(Plan&)>& change) {
    Plan base = whole_plan(statistics.manifest);
    change(base);
    return given::thrown_by([&] { place_experts(statistics, {.devices = devices, .nodes = nodes}, base); });
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(has(refused(5, 1, [](Plan&) {}), "12 experts a layer do not divide into 5 devices"));
  CHECK(has(refused(4, 3, [](Plan&) {}), "as many devices on every node"));
  CHECK(has(refused(4, 1, [](Plan& plan) { plan.groups = {.count = 6, .chosen = 2, .rule = "max"}; }),
            "one must divide the other"));
  CHECK(has(refused(2, 1, [](Plan& plan) { plan.checkpoint_fingerprint = "x"; }), "the plan is of checkpoint x"));
  CHECK(has(refused(2, 1, [](Plan& plan) {
    plan.layers[0].keep[1] = 0;
    plan.order = SlotOrder::free;
  }), "more than once"));
}
