// Routing by hand: who wins, who wins a tie, what a mask does, which groups are chosen, how gates are scaled.

#include <cmath>

#include <ATen/ATen.h>

#include "testing.h"

#include "forward/experts.h"
#include "forward/router.h"

using namespace moetrim;
using moetrim::testing::Approx;

namespace {

struct Routed {
  std::vector<float> probabilities;
  std::vector<std::int32_t> ids;
  std::vector<float> gates;
};

Routed route(const RouterRule& rule, const std::vector<float>& logits, const std::vector<bool>* kept = nullptr) {
  Routed out{std::vector<float>(logits.size()), std::vector<std::int32_t>(static_cast<std::size_t>(rule.experts_per_token)),
             std::vector<float>(static_cast<std::size_t>(rule.experts_per_token))};
  route_token(rule, logits.data(), kept, out.probabilities.data(), out.ids.data(), out.gates.data());
  return out;
}

using Ids = std::vector<std::int32_t>;

/// Logits whose softmax are these shares of their sum.
std::vector<float> logs(const std::vector<float>& shares) {
  std::vector<float> out;
  for (const float share : shares) out.push_back(std::log(share));
  return out;
}

void check_gates(const Routed& routed, const std::vector<double>& expected) {
  REQUIRE(routed.gates.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(routed.gates[i] == Approx(expected[i]));
}

}  // namespace

TEST_CASE("the most probable experts win, ties go to the lower id", "[forward][router]") {
  const RouterRule rule{.experts = 5, .experts_per_token = 3, .normalise = false, .round_gates = false};
  const auto routed = route(rule, {1.0F, 2.0F, 0.5F, 2.0F, 1.0F});
  CHECK(routed.ids == std::vector<std::int32_t>{1, 3, 0});
  const double sum = 2 * std::exp(2.0) + 2 * std::exp(1.0) + std::exp(0.5);
  CHECK(routed.gates[0] == Approx(std::exp(2.0) / sum));
  CHECK(routed.gates[2] == Approx(std::exp(1.0) / sum));
  CHECK(routed.probabilities[2] == Approx(std::exp(0.5) / sum));
}

TEST_CASE("normalised gates sum to one", "[forward][router]") {
  const RouterRule rule{.experts = 4, .experts_per_token = 2, .normalise = true, .round_gates = false};
  const auto routed = route(rule, {0.0F, std::log(3.0F), -9.0F, -9.0F});
  CHECK(routed.ids == std::vector<std::int32_t>{1, 0});
  CHECK(routed.gates[0] == Approx(0.75));
  CHECK(routed.gates[1] == Approx(0.25));
}

TEST_CASE("a mask leaves the softmax to the experts that stay", "[forward][router]") {
  const RouterRule rule{.experts = 4, .experts_per_token = 2, .normalise = false, .round_gates = false};
  const std::vector<bool> kept{true, false, true, true};
  const auto routed = route(rule, {0.0F, 9.0F, 0.0F, std::log(2.0F)}, &kept);
  CHECK(routed.ids == std::vector<std::int32_t>{3, 0});
  CHECK(routed.gates[0] == Approx(0.5));
  CHECK(routed.gates[1] == Approx(0.25));
  CHECK(routed.probabilities[1] == 0.0F);
}

TEST_CASE("normalised, then scaled, then rounded", "[forward][router]") {
  RouterRule rule{.experts = 3, .experts_per_token = 2, .normalise = true, .scale = 2.5F};
  check_gates(route(rule, logs({1, 2, 4})), {2.5 * 4 / 6, 2.5 * 2 / 6});
  rule.normalise = false;
  check_gates(route(rule, logs({1, 2, 4})), {2.5 * 4 / 7, 2.5 * 2 / 7});
  rule.round_gates = true;
  rule.scale = 1.0F;
  const auto routed = route(rule, logs({1, 1, 1}));
  CHECK(routed.gates == std::vector<float>{0.333984375F, 0.333984375F});  // a third in bf16
}

TEST_CASE("a selection bias decides who is chosen and is no part of the gate", "[forward][router]") {
  const std::vector<float> bias{0.0F, 0.0F, 0.6F, 0.0F};
  RouterRule rule{.experts = 4, .experts_per_token = 2, .score = RouterScore::sigmoid, .selection_bias = bias.data()};
  const std::vector<float> logits{0.0F, std::log(3.0F), -std::log(3.0F), -std::log(4.0F)};  // sigmoids 1/2, 3/4, 1/4, 1/5
  auto routed = route(rule, logits);
  CHECK(routed.ids == Ids{2, 1});
  check_gates(routed, {0.25, 0.75});
  CHECK(routed.probabilities[2] == Approx(0.25));
  rule.normalise = true;
  rule.scale = 3.0F;
  const std::vector<bool> kept{true, false, true, true};
  routed = route(rule, logits, &kept);
  CHECK(routed.ids == Ids{2, 0});
  check_gates(routed, {3.0 * 0.25 / 0.75, 3.0 * 0.5 / 0.75});
  CHECK(routed.probabilities[1] == 0.0F);
}

TEST_CASE("a mask wins over any selection bias", "[forward][router]") {
  const std::vector<float> bias{100.0F, 0.0F, -100.0F};
  const RouterRule rule{.experts = 3, .experts_per_token = 2, .score = RouterScore::sigmoid, .selection_bias = bias.data()};
  const std::vector<bool> kept{false, true, true};
  CHECK(route(rule, {0.0F, 0.0F, 0.0F}, &kept).ids == Ids{1, 2});
}

TEST_CASE("sigmoids that are all zero give gates of zero", "[forward][router]") {
  const RouterRule rule{.experts = 3, .experts_per_token = 2, .score = RouterScore::sigmoid, .normalise = true, .scale = 2.5F};
  const auto routed = route(rule, {-200.0F, -200.0F, -200.0F});
  CHECK(routed.ids == Ids{0, 1});
  CHECK(routed.gates == std::vector<float>{0.0F, 0.0F});
}

TEST_CASE("groups by their best expert", "[forward][router]") {
  RouterRule rule{.experts = 6, .experts_per_token = 3, .scale = 2.0F};
  const auto logits = logs({8, 1, 7, 1, 6, 6});
  CHECK(route(rule, logits).ids == Ids{0, 2, 4});
  rule.group_rule = GroupRule::max;
  rule.groups = 3;
  rule.groups_chosen = 2;
  auto routed = route(rule, logits);
  CHECK(routed.ids == Ids{0, 2, 1});  // 1 and 3 tie
  check_gates(routed, {2 * 8 / 29.0, 2 * 7 / 29.0, 2 * 1 / 29.0});
  const std::vector<bool> kept{false, true, true, true, true, true};
  routed = route(rule, logits, &kept);  // what is left of the first group is its 1
  CHECK(routed.ids == Ids{2, 4, 5});
  check_gates(routed, {2 * 7 / 21.0, 2 * 6 / 21.0, 2 * 6 / 21.0});
  rule.groups_chosen = 1;
  rule.experts_per_token = 2;
  CHECK(route(rule, logs({1, 1, 5, 2, 3, 5})).ids == Ids{2, 3});  // the groups tie: the lower one
}

TEST_CASE("groups by the sum of their two best experts", "[forward][router]") {
  // Sigmoids of 1/2 and biases that fp32 holds: 3/4, 1/4 | 5/8, 5/8 | 1/2, 1/2.
  const std::vector<float> bias{0.25F, -0.25F, 0.125F, 0.125F, 0.0F, 0.0F};
  const std::vector<float> logits(6, 0.0F);
  RouterRule rule{.experts = 6, .experts_per_token = 2, .score = RouterScore::sigmoid, .normalise = true,
                  .group_rule = GroupRule::top2, .groups = 3, .groups_chosen = 1, .selection_bias = bias.data()};
  CHECK(route(rule, logits).ids == Ids{2, 3});
  rule.group_rule = GroupRule::max;
  CHECK(route(rule, logits).ids == Ids{0, 1});
  rule.group_rule = GroupRule::top2;
  rule.groups_chosen = 2;
  rule.experts_per_token = 3;
  auto routed = route(rule, logits);
  CHECK(routed.ids == Ids{0, 2, 3});  // the first group ties with the last
  check_gates(routed, {1 / 3.0, 1 / 3.0, 1 / 3.0});
  const std::vector<bool> kept{true, true, false, true, true, true};
  routed = route(rule, logits, &kept);  // the second group has no two experts left
  CHECK(routed.ids == Ids{0, 4, 5});
  CHECK(routed.probabilities[2] == 0.0F);
}

TEST_CASE("the same number of experts from every group, each with a factor of its own", "[forward][router]") {
  const std::vector<float> factors{2.0F, 3.0F, 9.0F, 0.5F, 9.0F, 4.0F};
  RouterRule rule{.experts = 6, .experts_per_token = 2, .group_rule = GroupRule::each, .groups = 2, .groups_chosen = 2,
                  .output_scale = factors.data()};
  const auto logits = logs({1, 2, 1, 3, 1, 2});
  auto routed = route(rule, logits);
  CHECK(routed.ids == Ids{1, 3});  // by group, not by probability
  check_gates(routed, {0.2 * 3, 0.3 * 0.5});
  rule.experts_per_token = 4;
  routed = route(rule, logits);
  CHECK(routed.ids == Ids{1, 0, 3, 5});  // 0 and 2 tie
  check_gates(routed, {0.2 * 3, 0.1 * 2, 0.3 * 0.5, 0.2 * 4});
  rule.experts_per_token = 2;
  const std::vector<bool> kept{true, false, true, false, true, true};
  routed = route(rule, logits, &kept);
  CHECK(routed.ids == Ids{0, 5});
  check_gates(routed, {0.2 * 2, 0.4 * 4});
}

TEST_CASE("SparseMixer weighs the best against those within twice the jitter", "[forward][router]") {
  const RouterRule rule{.experts = 4, .experts_per_token = 2, .score = RouterScore::sparsemixer, .jitter = 0.1F};
  // Distances over 4: 0, 0.05, 0.1, 1. Then without the best, over 3.8: 0, 0.053, 1.
  auto routed = route(rule, {3.6F, 4.0F, 3.8F, 0.0F});
  CHECK(routed.ids == Ids{1, 2});
  check_gates(routed, {1 / (1 + std::exp(-0.2) + std::exp(-0.4)), 1 / (1 + std::exp(-0.2))});
  const double sum = std::exp(3.6) + std::exp(4.0) + std::exp(3.8) + 1;
  CHECK(routed.probabilities[1] == Approx(std::exp(4.0) / sum));  // the soft mass is a plain softmax
  // 0.125 lies within 0.2; of the second's rivals none does: 1.5 / 3.5 is 0.43.
  routed = route(rule, {4.0F, 3.5F, 2.0F, -1.0F});
  CHECK(routed.ids == Ids{0, 1});
  check_gates(routed, {1 / (1 + std::exp(-0.5)), 1.0});
  // Below zero the distance is over the rival's own size: 0.1 / 1.1, then 3.9 / 5.
  routed = route(rule, {-5.0F, -1.0F, -1.1F, -9.0F});
  CHECK(routed.ids == Ids{1, 2});
  check_gates(routed, {1 / (1 + std::exp(-0.1)), 1.0});
}

TEST_CASE("SparseMixer without the experts that a mask takes", "[forward][router]") {
  const RouterRule rule{.experts = 4, .experts_per_token = 2, .score = RouterScore::sparsemixer, .jitter = 0.1F};
  const std::vector<bool> kept{true, true, false, true};
  const auto routed = route(rule, {3.6F, 4.0F, 3.8F, 0.0F}, &kept);
  CHECK(routed.ids == Ids{1, 0});
  check_gates(routed, {1 / (1 + std::exp(-0.4)), 1.0});
  CHECK(routed.probabilities[2] == 0.0F);
}

TEST_CASE("rows are grouped by expert, within an expert by token", "[forward][experts]") {
  RoutedLayer routed;
  routed.tokens = 3;
  routed.experts = 4;
  routed.experts_per_token = 2;
  routed.ids = {2, 0, 0, 3, 2, 3};
  const auto rows = ExpertRows::group(routed);
  CHECK(rows.start == std::vector<std::int64_t>{0, 2, 2, 4, 6});
  CHECK(rows.pairs == std::vector<std::int64_t>{1, 2, 0, 4, 3, 5});
}
