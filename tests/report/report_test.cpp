// Load and specialisation by hand.
#include "testing.h"

#include <cmath>

#include "given.h"
#include "moetrim/report.h"

using namespace moetrim;
using moetrim::testing::Approx;

namespace {

/// Three tasks on four experts, one a token: a uses 0 and 1, b uses 2 alone and nothing ever uses 3; c is empty.
Statistics three_tasks() {
  LayerStatistics layer(2, 3, 4);
  const auto put = [&](int task, int expert, double tokens) {
    layer.at(Stat::routed_count, task, 0, expert) = tokens;
    layer.at(Stat::router_mass, task, 1, expert) = 2;
    layer.token_count[static_cast<std::size_t>(task * kSlices)] += tokens;
  };
  put(0, 0, 6);
  put(0, 1, 2);
  put(1, 2, 24);
  return given::statistics(given::manifest(1, 4, 1, 3), {layer});
}

}  // namespace

TEST_CASE("load of a layer by hand", "[report]") {
  const LayerLoad load = routing_load(three_tasks(), {0, 1, 2})[0];
  CHECK((load.layer == 2 && load.tokens == 32));
  CHECK((load.most_used == 2 && load.most_share == 0.75));
  CHECK((load.least_used == 3 && load.least_share == 0));
  CHECK(load.unseen == 1);
  CHECK(load.variation == Approx(std::sqrt((4 + 36 + 256 + 64) / 4.0) / 8));  // 6, 2, 24, 0 around 8
  const double shares[] = {6 / 32.0, 2 / 32.0, 24 / 32.0};
  double entropy = 0;
  for (const double share : shares) entropy -= share * std::log2(share);
  CHECK(load.entropy == Approx(entropy / 2));
  REQUIRE(load.soft_entropy);
  CHECK(*load.soft_entropy == Approx(std::log2(3.0) / 2));
  const LayerLoad one = routing_load(three_tasks(), {1})[0];
  CHECK((one.entropy == 0 && one.unseen == 3 && one.most_share == 1));
}

TEST_CASE("specialisation by hand: tasks that share no expert", "[report]") {
  const LayerSpecialisation layer = specialisation(three_tasks(), {0, 1, 2})[0];
  CHECK(layer.divergence == Approx(1));  // one bit says which of two tasks it was
  CHECK(layer.mutual_information == Approx(-0.25 * std::log2(0.25) - 0.75 * std::log2(0.75)));
  REQUIRE(layer.own.size() == 3);
  CHECK((layer.own[0].expert == 0 && layer.own[0].task == 0 && layer.own[0].share == 1));
  CHECK((layer.own[2].expert == 2 && layer.own[2].task == 1));
  CHECK(specialisation(three_tasks(), {0, 2})[0].divergence == 0);  // one task with tokens
}
