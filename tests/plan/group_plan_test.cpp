// Plans for routers that choose groups of experts first.
#include "testing.h"

#include "given.h"
#include "moetrim/plan.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

using Ids = std::vector<int>;

const RouterGroups kThree{.count = 3, .chosen = 2, .rule = "max"};

/// Layers 2, 3, … with the given scores; top-2 routing among 12 experts in groups 0-3, 4-7, 8-11. Nothing was measured.
struct Case {
  Statistics statistics;
  Scores scores;

  explicit Case(std::vector<std::vector<double>> values, RouterGroups groups = kThree) {
    const int experts = static_cast<int>(values.front().size());
    std::vector<LayerStatistics> layers;
    for (std::size_t l = 0; l < values.size(); ++l) layers.emplace_back(static_cast<int>(l) + 2, 1, experts);
    statistics = given::statistics(given::manifest(12, experts, 2), layers);
    statistics.manifest.groups = std::move(groups);
    statistics.manifest.router_selects_by_logit = false;
    scores.method = "by-hand";
    scores.variant = "executed";
    scores.layers = statistics.manifest.moe_layers;
    scores.values = std::move(values);
  }

  Plan plan(const char* keep, std::vector<std::string> protect = {}, bool regroup = false) const {
    const PlanRequest request{.keep = KeepBudget::parse(keep), .protect = std::move(protect), .regroup = regroup};
    return make_plan(statistics, scores, request, Variant::executed);
  }
  std::string refusal(const char* keep, std::vector<std::string> protect = {}, bool regroup = false) const {
    return given::thrown_by([&] { plan(keep, std::move(protect), regroup); });
  }
};

const std::vector<double> kFalling{12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1};

}  // namespace

TEST_CASE("every group keeps its best, though all the best are in one", "[plan][groups]") {
  const Case falling({kFalling, {1, 2, 3, 4, 9, 1, 9, 1, 0, 0, 0, 5}});
  const Plan plan = falling.plan("6");
  CHECK(plan.layers[0].keep == Ids{0, 1, 4, 5, 8, 9});
  CHECK(plan.layers[1].keep == Ids{2, 3, 4, 6, 8, 11});
  CHECK((plan.keep == 6 && plan.experts == 12));
  CHECK(plan.groups == kThree);
  CHECK_FALSE(plan.regroup);
  CHECK(falling.plan("12").layers[0].keep.size() == 12);
  CHECK(falling.plan("3").layers[1].keep == Ids{3, 4, 11});
}

TEST_CASE("ties in a group go to the lower id", "[plan][groups]") {
  const Case equal({std::vector<double>(12, 0.0), {0, 1, 0, 1, -1, -1, -1, -1, 2, 2, 1, 2}});
  CHECK(equal.plan("6").layers[0].keep == Ids{0, 1, 4, 5, 8, 9});
  CHECK(equal.plan("9").layers[1].keep == Ids{0, 1, 3, 4, 5, 6, 8, 9, 11});
}

TEST_CASE("protected experts come first in their group", "[plan][groups]") {
  const Plan plan = Case({kFalling, kFalling}).plan("6", {"3:7,10,11"});
  CHECK(plan.layers[0].keep == Ids{0, 1, 4, 5, 8, 9});
  CHECK(plan.layers[1].keep == Ids{0, 1, 4, 7, 10, 11});
}

TEST_CASE("more protected in a group than it keeps is refused with layer and group", "[plan][groups]") {
  const Case falling({kFalling, kFalling});
  CHECK_THAT(falling.refusal("6", {"3:4,5,7"}),
             Contains("InvalidInput") && Contains("layer 3, group 1 has 3 protected experts and keeps 2") &&
                 Contains("smallest keep that works is 9"));
  CHECK_THAT(falling.refusal("3", {"2:8,9", "3:0,1,2,3"}),
             Contains("layer 2, group 2 has 2 protected") && Contains("smallest keep that works is 12"));
  CHECK_THAT(falling.refusal("4", {"3:4,5,7"}), Contains("rule max") && Contains("smallest keep that works is 9"));
  CHECK(falling.refusal("9", {"3:4,5,7"}).empty());
  CHECK(falling.refusal("3", {"3:4,5,7"}, true).empty());  // one group has room for all three
}

TEST_CASE("a number that groups cannot share is refused", "[plan][groups]") {
  const Case falling({kFalling});
  CHECK_THAT(falling.refusal("7"), Contains("InvalidInput") && Contains("rule max") && Contains("nearest that work are 6 and 9"));
  const Case ten({{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}, {.count = 4, .chosen = 2, .rule = "max"});
  CHECK_THAT(ten.refusal("8"), Contains("InvalidInput") && Contains("10 experts cannot be divided into 4 groups"));
}

TEST_CASE("a ratio is rounded to whole groups, and the plan says so", "[plan][groups]") {
  const Plan plan = Case({kFalling}).plan("0.6");  // 7.2 of 12: nearer to 6 than to 9
  CHECK(plan.keep == 6);
  CHECK(plan.source["rounding"].dump() ==
        R"({"ratio":0.6,"experts":12,"keep":6,"rule":"nearest multiple of 3, half up, at least 3"})");
  CHECK(Case({kFalling}).plan("0.625").keep == 9);  // 7.5: half way
  CHECK_FALSE(Case({kFalling}).plan("6").source.contains("rounding"));
}

TEST_CASE("regrouping keeps the best of the layer, wherever they are", "[plan][groups]") {
  const Plan plan = Case({kFalling}).plan("5", {"2:11"}, true);
  CHECK(plan.layers[0].keep == Ids{0, 1, 2, 3, 11});
  CHECK(plan.regroup);
  CHECK(plan.groups == kThree);  // of the checkpoint that the plan is for
  CHECK_THAT(Case({kFalling}, {}).refusal("6", {}, true), Contains("InvalidInput") && Contains("no groups"));
  CHECK_THAT(Case({kFalling}, {.count = 2, .chosen = 2, .rule = "each"}).refusal("6", {}, true),
             Contains("InvalidInput") && Contains("rule each"));
}

TEST_CASE("one group is none in a plan", "[plan][groups]") {
  const Plan plan = Case({kFalling}, {.count = 1, .chosen = 1, .rule = "top2"}).plan("5");
  CHECK(plan.layers[0].keep == Ids{0, 1, 2, 3, 4});
  CHECK(plan.groups == RouterGroups{});
}

TEST_CASE("convergence compares what a plan would keep", "[plan][groups]") {
  LayerStatistics layer(0, 1, 6);
  const auto count = [&](int slice, int expert) -> double& { return layer.at(Stat::routed_count, 0, slice, expert); };
  count(0, 0) = 9;  // slice 0 prefers {0, 1} of the layer, {0, 3} by groups
  count(0, 1) = 8;
  count(0, 3) = 1;
  count(1, 5) = 7;  // with slice 1 {0, 5} by groups
  for (int slice = 0; slice < kSlices; ++slice) layer.token_count[static_cast<std::size_t>(slice)] = 10;
  auto statistics = given::statistics(given::manifest(1, 6, 2), {layer});
  statistics.manifest.groups = {.count = 2, .chosen = 2, .rule = "max"};
  const auto overlaps = [&](const char* keep, bool regroup) {
    return convergence(statistics, find_scoring_method("frequency"), {}, KeepBudget::parse(keep), {}, regroup);
  };
  CHECK(overlaps("2", false) == std::vector<double>{1.0 / 3.0, 1, 1, 1, 1, 1, 1, 1});
  CHECK(overlaps("2", true) == std::vector<double>(kSlices, 1.0));
  CHECK_THROWS_AS(overlaps("3", false), InvalidInput);
}
