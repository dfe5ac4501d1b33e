// Routing by hand: who wins, who wins a tie, what a mask does, how gates are scaled.

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
