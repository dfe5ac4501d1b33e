// The allocation against every choice there is, and its errors.
#include "testing.h"

#include <cmath>
#include <limits>
#include <random>

#include "moetrim/allocation.h"
#include "moetrim/error.h"

using namespace moetrim;

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
using Costs = std::vector<std::vector<double>>;

/// The first of the cheapest choices in lexicographic order; empty when none fits.
std::vector<int> by_trial(const Costs& costs, const std::vector<int>& counts, std::int64_t total) {
  std::vector<int> choice(costs.size()), best;
  double least = kNever;
  while (true) {
    std::int64_t sum = 0;
    double cost = 0;
    for (std::size_t layer = costs.size(); layer-- > 0;) {
      sum += counts[static_cast<std::size_t>(choice[layer])];
      cost = costs[layer][static_cast<std::size_t>(choice[layer])] + cost;
    }
    if (sum <= total && cost < least) {
      least = cost;
      best = choice;
    }
    std::size_t layer = costs.size();
    while (layer > 0 && ++choice[layer - 1] == static_cast<int>(counts.size())) choice[--layer] = 0;
    if (layer == 0) return best;
  }
}

}  // namespace

TEST_CASE("an allocation is the best of all there are, and the first of those", "[plan][allocation]") {
  std::mt19937 random(7);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  for (int round = 0; round < 400; ++round) {
    std::vector<int> counts{draw(1, 4)};
    for (int more = draw(0, 3); more > 0; --more) counts.push_back(counts.back() + (round % 2 == 0 ? 4 : draw(1, 5)));
    Costs costs(static_cast<std::size_t>(draw(1, 5)));
    for (auto& of_layer : costs) {
      // Few different costs: ties. They need not fall with the number of experts.
      for (std::size_t i = 0; i < counts.size(); ++i) of_layer.push_back(draw(0, 7) == 0 ? kNever : draw(-2, 4));
    }
    const std::int64_t total = draw(0, counts.back() * static_cast<int>(costs.size()) + 3);
    const auto expected = by_trial(costs, counts, total);
    CAPTURE(round, counts, costs, total);
    if (expected.empty()) {
      CHECK_THROWS_AS(allocate(costs, counts, total), InvalidInput);
    } else {
      CHECK(allocate(costs, counts, total) == expected);
    }
  }
}

TEST_CASE("an allocation says what cannot be", "[plan][allocation]") {
  const std::vector<int> counts{2, 4};
  const Costs costs{{1, 0}, {kNever, 0}};
  CHECK_THROWS_WITH(allocate(costs, counts, 5), Catch::Matchers::Contains("at least 6 must stay"));
  CHECK_THROWS_WITH(allocate(Costs{{1, 0}, {kNever, kNever}}, counts, 8), Catch::Matchers::Contains("layer number 1"));
  CHECK_THROWS_AS(allocate(Costs{{1, std::nan("")}}, counts, 8), UsageError);
  CHECK_THROWS_AS(allocate(Costs{{1}}, counts, 8), UsageError);
  CHECK_THROWS_AS(allocate(costs, std::vector<int>{4, 2}, 8), UsageError);
  CHECK_THROWS_AS(allocate(costs, std::vector<int>{0, 2}, 8), UsageError);
  CHECK(allocate(Costs{}, counts, 0).empty());
  CHECK(allocate(costs, counts, std::numeric_limits<std::int64_t>::max()) == std::vector{1, 1});
}
