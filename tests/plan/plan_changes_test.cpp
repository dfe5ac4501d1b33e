// The plan file of plans that change values or the order of experts: round trip, and what a broken one says.
#include "testing.h"

#include <functional>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/plan.h"

using namespace moetrim;
using Catch::Matchers::Contains;
using Json = nlohmann::ordered_json;

namespace {

Plan head(int keep) {
  Plan plan;
  plan.method = "hc-smoe";
  plan.variant = "executed";
  plan.checkpoint_fingerprint = "ab12";
  plan.family = "toy_moe";
  plan.experts = 6;
  plan.keep = keep;
  plan.experts_per_token = 2;
  return plan;
}

/// Experts 0, 3 and 5 become one; the second layer merges two.
Plan merged(MergedRouter router) {
  Plan plan = head(router == MergedRouter::centroid ? 4 : 6);
  plan.router = router;
  plan.align = Alignment::weights;
  plan.layers = {{.layer = 1, .keep = {1, 2, 3, 4}}, {.layer = 2, .keep = {0, 1, 2, 4}}};
  plan.layers[0].merge = {{.into = 3, .members = {0, 3, 5}, .weights = {0.25, 0.5, 0.25}}};
  plan.layers[1].merge = {{.into = 0, .members = {0, 3}, .weights = {1, 0}}, {.into = 4, .members = {4, 5}, .weights = {0.5, 0.5}}};
  if (router == MergedRouter::duplicate) {
    for (PlanLayer& layer : plan.layers) layer.keep = {0, 1, 2, 3, 4, 5};
  }
  return plan;
}

Plan changed() {
  Plan plan = head(6);
  plan.layers = {{.layer = 1, .keep = {0, 1, 2, 3, 4, 5}}};
  plan.layers[0].scale = {{1, 2.5}, {4, -0.5}};
  plan.layers[0].silence = {0, 3};
  plan.layers[0].constant = {5};
  plan.layers[0].smooth = {0.5F, 2.0F, 1.0F};
  return plan;
}

/// Two groups of three; a token uses one of them. Every expert twice but expert 4, the groups exchanged.
Plan repeated() {
  Plan plan = head(10);
  plan.order = SlotOrder::free;
  plan.noise = 0.01;
  plan.noise_seed = 7;
  plan.experts_per_token_after = 3;
  plan.groups = {.count = 2, .chosen = 1, .rule = "max"};
  plan.layers = {{.layer = 1, .keep = {5, 3, 5, 3, 4, 0, 1, 2, 0, 1}}};
  return plan;
}

std::string broken(const Plan& plan, const std::function<void(Json&)>& damage) {
  const given::TempFolder folder;
  Json json = plan_to_json(plan);
  damage(json);
  given::write_text(folder / "broken.json", json.dump());
  return given::thrown_by([&] { read_plan(folder / "broken.json"); });
}

}  // namespace

TEST_CASE("plans that change experts come back as they were written", "[plan]") {
  const given::TempFolder folder;
  for (const Plan& plan : {merged(MergedRouter::centroid), merged(MergedRouter::map), merged(MergedRouter::duplicate), changed(),
                           repeated()}) {
    write_plan(folder / "plan.json", plan);
    const Plan read = read_plan(folder / "plan.json");
    CHECK(plan_to_json(read) == plan_to_json(plan));
    CHECK(changes_values(read));
  }
  const Plan plan = merged(MergedRouter::centroid);
  write_plan(folder / "plan.json", plan);
  CHECK_THAT(given::bytes_of(folder / "plan.json"), Contains(R"("router": "centroid",
  "align": "weights",
  "layers": [
    {"layer":1,"keep":[1,2,3,4],"unseen":0,"unseen_kept":0,"merge":[{"into":3,"members":[0,3,5],"weights":[0.25,0.5,0.25]}]},)"));
}

TEST_CASE("router rows are those of the slots, or of all members with a map", "[plan]") {
  const Plan centroid = merged(MergedRouter::centroid);
  CHECK(router_rows(centroid, centroid.layers[0]) == std::vector<int>{1, 2, 3, 4});
  const Plan map = merged(MergedRouter::map);
  CHECK(router_rows(map, map.layers[0]) == std::vector<int>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("a broken change is refused with its field", "[plan]") {
  struct Broken {
    Plan plan;
    std::function<void(Json&)> damage;
    const char* expected;
  };
  const Plan centroid = merged(MergedRouter::centroid);
  const auto group = [](Json& j) -> Json& { return j["layers"][0]["merge"][0]; };
  const std::vector<Broken> all{
      {centroid, [&](Json& j) { group(j)["into"] = 1; }, "layers[0].merge[0].into: expert 1 is not one of the members"},
      {centroid, [&](Json& j) { group(j)["members"] = {3}; }, "layers[0].merge[0].members: expected two"},
      {centroid, [&](Json& j) { group(j)["members"] = {3, 0, 5}; }, "layers[0].merge[0].members[1]"},
      {centroid, [&](Json& j) { group(j)["members"] = {1, 3, 5}; }, "so keep must not have it"},
      {centroid, [&](Json& j) { group(j)["members"] = {0, 3, 9}; }, "layers[0].merge[0].members[2]"},
      {centroid, [&](Json& j) { group(j)["weights"] = {0.5, 0.5}; }, "layers[0].merge[0].weights: expected 3"},
      {centroid, [&](Json& j) { group(j)["weights"] = {0.5, 0.5, 0.5}; }, "layers[0].merge[0].weights: expected a sum of 1"},
      {centroid, [&](Json& j) { group(j)["weights"][0] = -0.1; }, "layers[0].merge[0].weights[0]"},
      {centroid, [&](Json& j) { group(j)["weights"][0] = nullptr; }, "layers[0].merge[0].weights[0]"},
      {centroid, [](Json& j) { j["layers"][1]["merge"][1]["members"] = {3, 4}; }, "layers[1].merge: expert 3 is in two groups"},
      {centroid, [](Json& j) { std::swap(j["layers"][1]["merge"][0], j["layers"][1]["merge"][1]); }, "in the order of into"},
      {centroid, [](Json& j) { j["layers"][0]["merge"] = Json::array(); }, "layers[0].merge: expected at least one group"},
      {centroid, [](Json& j) { j.erase("router"); }, "router: is missing"},
      {centroid, [](Json& j) { j["router"] = "map"; }, "layers[0].keep: expected 4 experts as in the plan's keep, got 6 router rows"},
      {centroid, [](Json& j) { j["router"] = "duplicate"; }, "so keep must have it"},
      {centroid, [](Json& j) { j["order"] = "free"; }, "order: expected ascending"},
      {changed(), [](Json& j) { j["align"] = "none"; }, "align: expected only where layers have merge groups"},
      {changed(), [](Json& j) { j["layers"][0]["scale"][1]["expert"] = 1; }, "layers[0].scale[1].expert"},
      {changed(), [](Json& j) { j["layers"][0]["scale"][0]["factor"] = "2"; }, "layers[0].scale[0].factor"},
      {changed(), [](Json& j) { j["layers"][0]["silence"] = {3, 0}; }, "layers[0].silence[1]"},
      {changed(), [](Json& j) { j["layers"][0]["constant"] = Json::array(); }, "layers[0].constant: expected at least one"},
      {changed(), [](Json& j) { j["layers"][0]["smooth"][0] = 0; }, "layers[0].smooth[0]"},
      {changed(), [](Json& j) { j["noise"] = 0.1, j["noise_seed"] = 0; }, "noise: expected only with order free"},
      {repeated(), [](Json& j) { j["layers"][0]["keep"][4] = 1; }, "layers[0].keep[4]: expert 1 is of group 0"},
      {repeated(), [](Json& j) { j["layers"][0]["keep"][4] = 6; }, "layers[0].keep[4]"},
      {repeated(), [](Json& j) { j["order"] = "ascending"; }, "expected only with order free"},
      {repeated(), [](Json& j) { j["noise"] = 2; }, "noise"},
      {repeated(), [](Json& j) { j["experts_per_token_after"] = 6; }, "experts_per_token_after: 6 experts per token"},
  };
  for (const Broken& one : all) {
    CAPTURE(one.expected);
    CHECK_THAT(broken(one.plan, one.damage), Contains("InvalidInput") && Contains("broken.json") && Contains(one.expected));
  }
}
