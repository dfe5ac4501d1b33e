// Observers by hand: two tokens, three experts, top-2.

#include <cmath>

#include <ATen/ATen.h>

#include "testing.h"

#include "calibrate/observe.h"

using namespace moetrim;
using moetrim::testing::Approx;

namespace {

/// Token 0 routes to 1 and 0, token 1 to 1 and 2.
RoutedLayer two_tokens() {
  RoutedLayer routed;
  routed.layer = 4;
  routed.tokens = 2;
  routed.experts = 3;
  routed.experts_per_token = 2;
  routed.logits = {0.0F, std::log(3.0F), -5.0F, -6.0F, 1.0F, 1.0F};
  routed.probabilities = {0.25F, 0.75F, 0.0F, 0.0F, 0.5F, 0.5F};
  routed.ids = {1, 0, 1, 2};
  routed.gates = {0.75F, 0.25F, 0.5F, 0.5F};
  routed.norms = {2.0F, 4.0F, 6.0F, 8.0F};
  routed.max_abs = {1.0F, 3.0F, 5.0F, 7.0F};
  routed.turns = {0.5, 0.25};
  return routed;
}

std::vector<MeasuredSequence> one_sequence(std::int64_t count_begin, std::int64_t count_end) {
  return {{.begin = 0, .length = 2, .count_begin = count_begin, .count_end = count_end, .task = 0, .slice = 3, .demonstration = 3}};
}

}  // namespace

TEST_CASE("a layer's sums are those of its tokens", "[calibrate][observe]") {
  LayerStatistics layer(4, 1, 3);
  observe_layer(two_tokens(), one_sequence(0, 2), {.tcess_top_k = 1, .tcess_threshold = 0.5}, layer);
  CHECK(layer.task_total(Stat::routed_count, 0) == std::vector<double>{1, 2, 1});
  CHECK(layer.task_total(Stat::gate_sum, 0) == std::vector<double>{0.25, 1.25, 0.5});
  CHECK(layer.task_total(Stat::gate_square_sum, 0) == std::vector<double>{0.0625, 0.8125, 0.25});
  CHECK(layer.task_total(Stat::router_mass, 0) == std::vector<double>{0.25, 1.25, 0.5});
  CHECK(layer.task_total(Stat::norm_sum, 0) == std::vector<double>{4, 8, 8});
  CHECK(layer.task_total(Stat::gated_norm_sum, 0) == std::vector<double>{1, 4.5, 4});
  CHECK(layer.task_total(Stat::easy_ep_sum, 0) == std::vector<double>{0.5, 0.5 * 1.5 + 0.25 * 3, 0.25 * 4});
  CHECK(layer.task_total(Stat::max_abs, 0) == std::vector<double>{3, 5, 7});
  // Shares of token 0 are 0.75 and 0.25, of token 1 0.5 and 0.5; the threshold is 0.5.
  const auto shares = layer.task_total(Stat::tcess_sum, 0);
  CHECK(shares[0] == 0.0);
  CHECK(shares[1] == Approx(1.25));
  CHECK(shares[2] == Approx(0.5));
  // The largest raw logit alone: expert 1 twice, in token 1 by the tie's lower id.
  const auto published = layer.task_total(Stat::tcess_logit_sum, 0);
  CHECK(published[1] == Approx(std::log(3.0) + 1.0));
  CHECK(published[2] == 0.0);
  CHECK(layer.coactivation == std::vector<double>{1, 1, 0, 1, 2, 1, 0, 1, 1});
  CHECK(layer.task_tokens(0) == 2);
}

TEST_CASE("only measured tokens count, in their slice", "[calibrate][observe]") {
  LayerStatistics layer(4, 1, 3);
  observe_layer(two_tokens(), one_sequence(1, 2), {.tcess_top_k = 1, .tcess_threshold = 0}, layer);
  CHECK(layer.task_total(Stat::routed_count, 0) == std::vector<double>{0, 1, 1});
  CHECK(layer.at(Stat::routed_count, 0, 3, 1) == 1);
  CHECK(layer.at(Stat::routed_count, 0, 0, 1) == 0);
  CHECK(layer.token_count[3] == 1);
}

TEST_CASE("the first row of an expert is the earliest at its lowest slot", "[calibrate][observe]") {
  RoutedLayer routed = two_tokens();
  routed.ids = {0, 1, 1, 2};  // expert 1: slot 1 in token 0, slot 0 in token 1
  LayerStatistics layer(4, 1, 3);
  observe_layer(routed, one_sequence(0, 2), {.tcess_top_k = 1, .tcess_threshold = 0}, layer);
  CHECK(layer.task_total(Stat::max_abs_first_row, 0) == std::vector<double>{1, 5, 7});
}

TEST_CASE("transitions pair the experts of one layer with those of the next", "[calibrate][observe]") {
  LayerStatistics layer(3, 1, 3);
  observe_transitions({0, 2, 2, 1}, two_tokens(), one_sequence(0, 2), layer);
  // Token 0: {0, 2} to {1, 0}; token 1: {2, 1} to {1, 2}.
  CHECK(layer.transitions == std::vector<double>{1, 1, 0, 0, 1, 1, 1, 2, 1});
}
