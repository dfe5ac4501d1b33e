// Plans whose layers keep different numbers of experts: made, written and read, and what refuses them.
#include "testing.h"

#include <functional>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/plan.h"

using namespace moetrim;
using Catch::Matchers::Contains;
using Json = nlohmann::ordered_json;
using Ids = std::vector<int>;

namespace {

const std::vector<std::vector<double>> kScores{{.1, .5, .2, .9, .3, .4}, {6, 5, 4, 3, 2, 1}, {1, 1, 1, 1, 1, 1}};

/// Layers 2 to 4 with top-2 routing, of which nothing was measured but what an expert weighs: 100 bytes of 10000.
Statistics measured(RouterGroups groups = {}) {
  std::vector<LayerStatistics> layers;
  for (int layer = 2; layer < 5; ++layer) layers.emplace_back(layer, 1, 6);
  Statistics statistics = given::statistics(given::manifest(12, 6, 2), layers);
  statistics.manifest.groups = std::move(groups);
  statistics.manifest.sizes = {.checkpoint_bytes = 10000, .expert_bytes = 100, .atom_bytes = 10};
  return statistics;
}

Plan plan(const Statistics& statistics, PlanRequest request) {
  Scores scores;
  scores.method = "by-hand";
  scores.variant = "executed";
  scores.layers = statistics.manifest.moe_layers;
  scores.values = kScores;
  return make_plan(statistics, scores, request, Variant::executed);
}

std::string refusal(const Statistics& statistics, PlanRequest request) {
  return given::thrown_by([&] { plan(statistics, request); });
}

}  // namespace

TEST_CASE("every layer keeps its own number of its best experts", "[plan][by-layer]") {
  const Plan made = plan(measured(), {.keep_by_layer = {3, 5, 2}, .protect = {"4:5"}});
  CHECK(made.layers[0].keep == Ids{1, 3, 5});
  CHECK(made.layers[1].keep == Ids{0, 1, 2, 3, 4});
  CHECK(made.layers[2].keep == Ids{0, 5});
  CHECK((made.keep == 5 && made.counts == LayerCounts::listed && kept_experts(made) == 10 && keep_text(made) == "2 to 5"));
  CHECK(made.source["expected"]["bytes"] == 10000 - 8 * 100);
  const Plan equal = plan(measured(), {.keep_by_layer = {3, 3, 3}});
  CHECK((equal.keep == 3 && equal.counts == LayerCounts::equal));
  CHECK_FALSE(plan_to_json(equal).contains("counts"));
}

TEST_CASE("numbers of experts by layer that cannot be are refused", "[plan][by-layer]") {
  CHECK_THAT(refusal(measured(), {.keep_by_layer = {3, 5}}), Contains("InvalidInput") && Contains("2 numbers for 3 MoE layers"));
  CHECK_THAT(refusal(measured(), {.keep_by_layer = {3, 1, 3}}), Contains("layer 3") && Contains("routed to 2 experts"));
  CHECK_THAT(refusal(measured(), {.keep_by_layer = {3, 7, 3}}), Contains("layer 3") && Contains("at most 6"));
  CHECK_THAT(refusal(measured(), {.keep_by_layer = {2, 4, 4}, .protect = {"2:0,1,2"}}), Contains("3 protected experts"));
  CHECK_THAT(refusal(measured(), {.keep = KeepBudget::parse("3"), .keep_by_layer = {3, 3, 3}}), Contains("UsageError"));
  CHECK_THAT(refusal(measured(), {.keep_by_layer = {3, 5, 2}, .budget_bytes = 9199}), Contains("below the 9200"));
  const RouterGroups groups{.count = 2, .chosen = 1, .rule = "max"};
  CHECK(plan(measured(groups), {.keep_by_layer = {4, 6, 4}}).layers[0].keep == Ids{1, 2, 3, 5});
  CHECK_THAT(refusal(measured(groups), {.keep_by_layer = {4, 5, 4}}), Contains("layer 3") && Contains("groups"));
}

TEST_CASE("numbers by layer survive the plan file, and broken ones are refused", "[plan][by-layer]") {
  const given::TempFolder folder;
  const auto file = folder.path() / "plan.json";
  const Plan made = plan(measured(), {.keep_by_layer = {3, 5, 2}});
  write_plan(file, made);
  const Plan read = read_plan(file);
  CHECK(plan_to_json(read) == plan_to_json(made));
  CHECK(read.counts == LayerCounts::listed);

  const std::vector<std::pair<std::function<void(Json&)>, const char*>> kBroken = {
      {[](Json& j) { j.erase("counts"); }, "layers[0].keep: expected 5"},
      {[](Json& j) { j["keep"] = 4; }, "layers[1].keep: expected at most 4"},
      {[](Json& j) { j["keep"] = 6; }, "keep: expected 5"},
      {[](Json& j) { j["layers"][2]["keep"] = {0}; }, "layers[2].keep: 1 experts do not work"},
      {[](Json& j) { j["counts"] = "equal"; }, "counts"},
      {[](Json& j) {
         j["keep"] = 2;
         for (Json& layer : j["layers"]) layer.update({{"keep", {0, 1}}, {"unseen_kept", 2}});
       },
       "counts: every layer keeps the same number"},
  };
  for (const auto& [damage, expected] : kBroken) {
    Json json = plan_to_json(made);
    damage(json);
    write_file_atomically(file, json.dump());
    CHECK_THAT(given::thrown_by([&] { read_plan(file); }), Contains("InvalidInput") && Contains(expected));
  }
}

TEST_CASE("what needs as many experts in every layer says so", "[plan][by-layer]") {
  const Plan made = plan(measured(), {.keep_by_layer = {3, 5, 2}});
  CHECK_THAT(given::thrown_by([&] { check_equal_counts(made, "place"); }), Contains("place: the plan keeps 2 to 5 experts"));
}
