// The growth of kept gates, by hand.
#include "testing.h"

#include "given.h"
#include "moetrim/plan.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

/// Two layers of 4 experts, tasks a (10 tokens) and b (30 tokens); the routed counts keep experts 0 and 1 at keep 2.
///
/// Mass of experts 0 and 1 per token: in layer 0 (6 + 2) / 10 = 0.8 in a and (9 + 3) / 30 = 0.4 in b; in layer 1
/// (3 + 2) / 10 = 0.5 in a and (15 + 6) / 30 = 0.7 in b.
Statistics example() {
  std::vector<LayerStatistics> layers;
  const std::vector<std::vector<double>> mass{{6, 2, 1, 1, 9, 3, 12, 6}, {3, 2, 4, 1, 15, 6, 6, 3}};
  for (int l = 0; l < 2; ++l) {
    auto& layer = layers.emplace_back(l, 2, 4);
    layer.token_count[0] = 10;
    layer.token_count[kSlices] = 10;
    layer.token_count[kSlices + 3] = 20;
    for (int task = 0; task < 2; ++task) {
      layer.at(Stat::routed_count, task, 0, 0) = 9;
      layer.at(Stat::routed_count, task, 0, 1) = 5;
      for (int e = 0; e < 4; ++e) {
        const double value = mass[static_cast<std::size_t>(l)][static_cast<std::size_t>(task * 4 + e)];
        layer.at(Stat::router_mass, task, task == 0 ? 0 : 3, e) = value;
      }
    }
  }
  auto manifest = given::manifest(2, 4, 2, 2);
  manifest.gates_normalised = false;
  return given::statistics(manifest, layers);
}

using Weights = std::vector<std::pair<std::string, double>>;

Plan planned(const Statistics& statistics, const Weights& weights = {}, bool correct_drift = false, int keep = 2) {
  PlanRequest request;
  request.keep.experts = keep;
  request.correct_drift = correct_drift;
  return make_plan(statistics, score(statistics, find_scoring_method("frequency"), {}, weights), request, Variant::executed);
}

void check_masses(const Plan& plan, double first, double second) {
  REQUIRE((plan.layers[0].kept_mass && plan.layers[1].kept_mass));
  CHECK(*plan.layers[0].kept_mass == testing::Approx(first));
  CHECK(*plan.layers[1].kept_mass == testing::Approx(second));
}

}  // namespace

TEST_CASE("kept mass is a mean over tokens, then over tasks by weight", "[plan][drift]") {
  const auto statistics = example();
  check_masses(planned(statistics, {{"a", 1.0}}), 0.8, 0.5);
  check_masses(planned(statistics, {{"b", 7.0}}), 0.4, 0.7);  // the weight of a single task is of no account
  check_masses(planned(statistics), 0.6, 0.6);
  check_masses(planned(statistics, {{"b", 1.0}, {"a", 3.0}}), 0.7, 0.55);
  check_masses(planned(statistics, {}, false, 4), 1, 1);
}

TEST_CASE("drift is the mean over the layers, and the worst layer", "[plan][drift]") {
  const Plan plan = planned(example(), {{"b", 1.0}, {"a", 3.0}}, true);
  const auto drift = router_drift(plan);
  REQUIRE(drift);
  CHECK(drift->mean_mass == testing::Approx(0.625));
  CHECK(drift->least_mass == testing::Approx(0.55));
  CHECK(drift->least_layer == 1);
  CHECK(plan.correct_drift);
  CHECK(plan.source["router_drift"]["mean_kept_mass"].get<double>() == testing::Approx(0.625));
  CHECK(plan.source["router_drift"]["least_layer"] == 1);
  const auto whole = router_drift(planned(example(), {}, false, 4));
  CHECK((whole && whole->mean_mass == 1 && whole->least_mass == 1));
}

TEST_CASE("gates that do not depend on other experts do not drift", "[plan][drift]") {
  auto normalised = example();
  normalised.manifest.gates_normalised = true;
  auto sigmoid = example();
  sigmoid.manifest.router = "sigmoid";
  for (const Statistics* statistics : {&normalised, &sigmoid}) {
    const Plan plan = planned(*statistics);
    CHECK_FALSE(plan.layers[0].kept_mass);
    CHECK_FALSE(router_drift(plan));
    CHECK_FALSE(plan.source.contains("router_drift"));
    CHECK_THAT(given::thrown_by([&] { planned(*statistics, {}, true); }),
               Contains("InvalidInput") && Contains("correct-drift") && Contains("nothing drifts"));
  }
  CHECK_THAT(given::thrown_by([&] { check_correct_drift(router_limits(normalised.manifest)); }), Contains("renormalised"));
  CHECK_THAT(given::thrown_by([&] { check_correct_drift(router_limits(sigmoid.manifest)); }), Contains("sigmoid"));
  CHECK_NOTHROW(check_correct_drift(router_limits(example().manifest)));
}

TEST_CASE("a task without tokens has no say, and none at all is refused only where it matters", "[plan][drift]") {
  auto statistics = example();
  LayerStatistics first(0, 2, 4), second(1, 2, 4);
  first.add_task(0, statistics.layers[0], 0);
  second.add_task(0, statistics.layers[1], 0);
  check_masses(planned(given::statistics(statistics.manifest, {first, second})), 0.8, 0.5);

  const auto nothing = given::statistics(statistics.manifest, {LayerStatistics(0, 2, 4), LayerStatistics(1, 2, 4)});
  CHECK_FALSE(router_drift(planned(nothing)));
  CHECK_THAT(given::thrown_by([&] { planned(nothing, {}, true); }),
             Contains("InvalidInput") && Contains("layer 0") && Contains("router_mass"));
}
