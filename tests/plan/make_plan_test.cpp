// Scores, a budget and protection to a plan.
#include "testing.h"

#include <limits>

#include "given.h"
#include "moetrim/plan.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

/// Layers with the given scores; layer ids start at 2, as behind two dense layers. Top-2 routing. Nothing was measured.
struct Case {
  Statistics statistics;
  Scores scores;

  explicit Case(std::vector<std::vector<double>> values) {
    const int experts = static_cast<int>(values.front().size());
    std::vector<LayerStatistics> layers;
    for (std::size_t l = 0; l < values.size(); ++l) layers.emplace_back(static_cast<int>(l) + 2, 1, experts);
    statistics = given::statistics(given::manifest(12, experts, 2), layers);
    scores.method = "by-hand";
    scores.variant = "executed";
    scores.layers = statistics.manifest.moe_layers;
    scores.values = std::move(values);
  }

  Plan plan(const char* keep, std::vector<std::string> protect = {}) const {
    return make_plan(statistics, scores, {.keep = KeepBudget::parse(keep), .protect = std::move(protect)}, Variant::executed);
  }
  std::string refusal(const char* keep, std::vector<std::string> protect = {}) const {
    return given::thrown_by([&] { plan(keep, protect); });
  }
};

using Ids = std::vector<int>;

}  // namespace

TEST_CASE("the best experts stay, ids ascending", "[plan]") {
  const Plan plan = Case({{.1, .5, .2, .9, .3}, {5, 4, 3, 2, 1}}).plan("3");
  REQUIRE(plan.layers.size() == 2);
  CHECK(plan.layers[0].layer == 2);
  CHECK(plan.layers[0].keep == Ids{1, 3, 4});
  CHECK(plan.layers[1].layer == 3);
  CHECK(plan.layers[1].keep == Ids{0, 1, 2});
  CHECK((plan.experts == 5 && plan.keep == 3 && plan.experts_per_token == 2));
  CHECK(plan.method == "by-hand");
  CHECK(plan.checkpoint_fingerprint == "00112233445566778899aabbccddeeff");
}

TEST_CASE("ties go to the lower id, at any size", "[plan]") {
  for (const std::size_t experts : {5U, 7U, 11U, 64U}) {
    const std::vector<double> equal(experts, 0.0);
    CHECK(Case({equal}).plan("3").layers[0].keep == Ids{0, 1, 2});
  }
  CHECK(Case({{0, 1, 0, 1, 0, 1, 0}}).plan("4").layers[0].keep == Ids{0, 1, 3, 5});
  CHECK(Case({{-0.0, 0.0, -0.0, 0.0, 0.0}}).plan("2").layers[0].keep == Ids{0, 1});
}

TEST_CASE("negative scores rank below zero", "[plan]") {
  CHECK(Case({{-3, 0, -1, 0, 2}}).plan("4").layers[0].keep == Ids{1, 2, 3, 4});
}

TEST_CASE("a smaller budget keeps a subset", "[plan]") {
  const Case random_case({{.3, .1, .3, .9, .3, .2, .1}});
  for (int keep = 3; keep <= 7; ++keep) {
    const auto small = random_case.plan(std::to_string(keep - 1).c_str()).layers[0].keep;
    const auto large = random_case.plan(std::to_string(keep).c_str()).layers[0].keep;
    CHECK(std::includes(large.begin(), large.end(), small.begin(), small.end()));
  }
}

TEST_CASE("a ratio is rounded once and reported", "[plan]") {
  const Plan plan = Case({{1, 2, 3, 4, 5, 6, 7}}).plan("0.5");
  CHECK(plan.keep == 4);
  CHECK(plan.source["rounding"]["ratio"] == 0.5);
  CHECK(plan.source["rounding"]["experts"] == 7);
  CHECK(plan.source["rounding"]["keep"] == 4);
  CHECK_FALSE(Case({{1, 2, 3}}).plan("2").source.contains("rounding"));
}

TEST_CASE("a budget below the routed experts or above all of them is refused", "[plan]") {
  const Case five({{1, 2, 3, 4, 5}});
  CHECK_THAT(five.refusal("1"),
             Contains("InvalidInput") && Contains("routed to 2") && Contains("smallest keep that works is 2"));
  CHECK_THAT(five.refusal("0.2"), Contains("InvalidInput") && Contains("keep 1") && Contains("smallest keep that works is 2"));
  CHECK_THAT(five.refusal("6"), Contains("InvalidInput") && Contains("5 experts"));
  CHECK(five.plan("5").layers[0].keep == Ids{0, 1, 2, 3, 4});
  CHECK(five.plan("2").layers[0].keep == Ids{3, 4});
}

TEST_CASE("protected experts come first, in their layer only", "[plan]") {
  const Case two({{1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}});
  const Plan plan = two.plan("3", {"3:0,1"});
  CHECK(plan.layers[0].keep == Ids{2, 3, 4});
  CHECK(plan.layers[1].keep == Ids{0, 1, 4});
  REQUIRE(plan.protect.size() == 2);
  CHECK((plan.protect[1].layer == 3 && plan.protect[1].expert == 1 && plan.protect[1].why == "requested"));
  CHECK(plan.source["protect"][0] == "3:0,1");
  CHECK(two.plan("2", {"3:0,3:1", "2:0", "2:0"}).layers[0].keep == Ids{0, 4});  // layer named again, expert named twice
  CHECK(two.plan("2", {"2:0,3:1"}).layers[1].keep == Ids{1, 4});
}

TEST_CASE("more protected than kept is refused with counts and a way out", "[plan]") {
  const Case two({{1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}});
  CHECK_THAT(two.refusal("2", {"2:0,1,2", "3:0,1,2,3"}),
             Contains("InvalidInput") && Contains("layer 2 has 3 protected") && Contains("smallest keep that works is 4"));
  CHECK_THAT(two.refusal("1", {"2:0,1,2"}), Contains("InvalidInput") && Contains("smallest keep that works is 3"));
}

TEST_CASE("protection that cannot be read or does not exist is refused", "[plan]") {
  const Case one({{1, 2, 3, 4, 5}});
  for (const char* text : {"", "supper", "2", "2:", ":1", "2:1,", "2:-1", "2:1-3", "x:1", "super:1", "2:1,super,1",
                           "99999999999:1"}) {
    CAPTURE(text);
    CHECK_THAT(one.refusal("3", {text}), Contains("UsageError") && Contains("protect"));
  }
  CHECK_THAT(one.refusal("3", {"0:1"}), Contains("InvalidInput") && Contains("layer 0") && Contains("2 to 2"));
  CHECK_THAT(one.refusal("3", {"2:5"}), Contains("InvalidInput") && Contains("expert 5") && Contains("0 to 4"));
}

TEST_CASE("experts without tokens are counted, also those that stay", "[plan]") {
  const given::Token token{.experts = {4, 2}, .gates = {.7, .3}, .norms = {1, 2}, .turn = .5, .logits = {0, 0, 1, 0, 2}};
  given::Token other = token;
  other.experts = {0, 1};
  other.task = 1;
  const auto statistics = given::statistics(given::manifest(1, 5, 2, 2), {given::layer(0, 2, 5, {token, other})});
  const auto& method = find_scoring_method("frequency");
  const auto planned = [&](const std::vector<std::pair<std::string, double>>& weights) {
    return make_plan(statistics, score(statistics, method, {}, weights), {.keep = KeepBudget::parse("3")}, Variant::executed);
  };
  const Plan first = planned({{"a", 1.0}});
  CHECK(first.layers[0].keep == Ids{0, 2, 4});
  CHECK(first.layers[0].unseen == 3);
  CHECK(first.layers[0].unseen_kept == 1);
  const Plan both = planned({});
  CHECK(both.layers[0].unseen == 1);
  CHECK(both.layers[0].unseen_kept == 0);
}

TEST_CASE("scores of something else are refused", "[plan]") {
  const Case good({{1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}});
  const auto refusal = [&](auto change) {
    Case bad = good;
    change(bad.scores);
    return bad.refusal("3");
  };
  CHECK_THAT(refusal([](Scores& s) { s.layers = {2, 4}; }), Contains("InvalidInput") && Contains("layers"));
  CHECK_THAT(refusal([](Scores& s) { s.layers.pop_back(); }), Contains("InvalidInput") && Contains("layers"));
  CHECK_THAT(refusal([](Scores& s) { s.values[1].pop_back(); }),
             Contains("InvalidInput") && Contains("layer 3") && Contains("experts"));
  CHECK_THAT(refusal([](Scores& s) { s.values[1][0] = std::numeric_limits<double>::quiet_NaN(); }),
             Contains("InvalidInput") && Contains("layer 3") && Contains("finite"));
  CHECK_THAT(refusal([](Scores& s) { s.source["checkpoint_fingerprint"] = "ff"; }), Contains("InvalidInput") && Contains("ff"));
}
