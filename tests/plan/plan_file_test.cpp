// The plan file: round trip, readable bytes, and what a broken one says.
#include "testing.h"

#include <functional>
#include <limits>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/plan.h"
#include "score/second_order.h"

using namespace moetrim;
using Catch::Matchers::Contains;
using Json = nlohmann::ordered_json;

namespace {

Plan example() {
  Plan plan;
  plan.method = "reap";
  plan.variant = "executed";
  plan.checkpoint_fingerprint = "ab12";
  plan.family = "toy_moe";
  plan.experts = 5;
  plan.keep = 3;
  plan.experts_per_token = 2;
  plan.layers = {{.layer = 1, .keep = {0, 2, 4}, .unseen = 1, .unseen_kept = 0},
                 {.layer = 3, .keep = {1, 2, 3}, .unseen = 0, .unseen_kept = 0}};
  plan.protect = {{1, 4, "super"}, {3, 1, "requested"}};
  plan.source = {{"seed", 0}};
  return plan;
}

/// 6 experts in 3 groups, of which a token uses 2.
Plan grouped() {
  Plan plan = example();
  plan.experts = 6;
  plan.groups = {.count = 3, .chosen = 2, .rule = "max"};
  plan.layers[0].keep = {0, 2, 4};
  plan.layers[1].keep = {1, 2, 5};
  plan.layers[0].kept_mass = 0.75;
  plan.layers[1].kept_mass = 0.5;
  plan.correct_drift = true;
  return plan;
}

/// Experts of 8 atoms.
Plan slim() {
  Plan plan = example();
  plan.width = 8;
  plan.layers[0].atoms = {{{0, 3}, {5, 8}}, {}, {{0, 8}}};
  plan.layers[1].atoms = {{{0, 8}}, {{1, 2}}, {{7, 8}}};
  return plan;
}

struct BrokenPlan {
  const char* name;
  std::function<void(Json&)> damage;
  const char* expected;
};

const std::vector<BrokenPlan> kBrokenPlans{
    {"not a plan", [](Json& j) { j["format"] = "moetrim-statistics"; }, "format"},
    {"no format", [](Json& j) { j.erase("format"); }, "format"},
    {"later version", [](Json& j) { j["version"] = 2; }, "version"},
    {"misspelt field", [](Json& j) { j["protects"] = 1; }, "did you mean \"protect\"?"},
    {"foreign field", [](Json& j) { j["zzzzzzzz"] = 1; }, "unknown field \"zzzzzzzz\""},
    {"misspelt layer field", [](Json& j) { j["layers"][0]["unsen"] = 0; }, "layers[0]: unknown field \"unsen\""},
    {"misspelt protect field", [](Json& j) { j["protect"][1]["reason"] = ""; }, "protect[1]: unknown field"},
    {"unknown variant", [](Json& j) { j["variant"] = "oficial"; }, "did you mean \"official\"?"},
    {"empty method", [](Json& j) { j["method"] = ""; }, "method"},
    {"no fingerprint", [](Json& j) { j.erase("checkpoint_fingerprint"); }, "checkpoint_fingerprint"},
    {"family as number", [](Json& j) { j["family"] = 3; }, "family"},
    {"no experts", [](Json& j) { j["experts"] = 0; }, "experts"},
    {"experts beyond an int", [](Json& j) { j["experts"] = std::int64_t{1} << 40; }, "experts"},
    {"keep more than there are", [](Json& j) { j["keep"] = 6; }, "keep"},
    {"keep nothing", [](Json& j) { j["keep"] = 0; }, "keep"},
    {"keep as text", [](Json& j) { j["keep"] = "3"; }, "keep"},
    {"keep fewer than a token needs", [](Json& j) { j["experts_per_token"] = 4; }, "experts_per_token"},
    {"layers as object", [](Json& j) { j["layers"] = Json::object(); }, "layers"},
    {"no layers", [](Json& j) { j["layers"] = Json::array(); }, "layers"},
    {"layer as number", [](Json& j) { j["layers"][1] = 3; }, "layers[1]"},
    {"negative layer", [](Json& j) { j["layers"][0]["layer"] = -1; }, "layers[0].layer"},
    {"doubled layer", [](Json& j) { j["layers"][1]["layer"] = 1; }, "layers[1].layer"},
    {"layers out of order", [](Json& j) { j["layers"][1]["layer"] = 0; }, "layers[1].layer"},
    {"id too large", [](Json& j) { j["layers"][1]["keep"] = {1, 2, 5}; }, "layers[1].keep[2]"},
    {"negative id", [](Json& j) { j["layers"][1]["keep"] = {-1, 2, 3}; }, "layers[1].keep[0]"},
    {"huge id", [](Json& j) { j["layers"][1]["keep"][2] = std::numeric_limits<std::uint64_t>::max(); }, "layers[1].keep[2]"},
    {"fraction as id", [](Json& j) { j["layers"][1]["keep"][2] = 3.5; }, "layers[1].keep[2]"},
    {"null id", [](Json& j) { j["layers"][1]["keep"][2] = nullptr; }, "layers[1].keep[2]"},
    {"doubled id", [](Json& j) { j["layers"][1]["keep"] = {1, 2, 2}; }, "layers[1].keep[2]"},
    {"unsorted ids", [](Json& j) { j["layers"][1]["keep"] = {2, 1, 3}; }, "layers[1].keep[1]"},
    {"too few ids", [](Json& j) { j["layers"][1]["keep"] = {1, 2}; }, "layers[1].keep"},
    {"too many ids", [](Json& j) { j["layers"][1]["keep"] = {0, 1, 2, 3}; }, "layers[1].keep"},
    {"more unseen than there are", [](Json& j) { j["layers"][0]["unseen"] = 6; }, "layers[0].unseen"},
    {"more unseen kept than unseen", [](Json& j) { j["layers"][0]["unseen_kept"] = 2; }, "layers[0].unseen_kept"},
    {"protected layer unknown", [](Json& j) { j["protect"][0]["layer"] = 2; }, "protect[0].layer"},
    {"protected but dropped", [](Json& j) { j["protect"][0]["expert"] = 3; }, "protect[0].expert"},
    {"protected id too large", [](Json& j) { j["protect"][0]["expert"] = 5; }, "protect[0].expert"},
    {"unknown reason", [](Json& j) { j["protect"][0]["why"] = "because"; }, "protect[0].why"},
    {"source as text", [](Json& j) { j["source"] = "reap"; }, "source"},
    {"no object", [](Json& j) { j = 5; }, "expected an object"},
};

const std::vector<BrokenPlan> kBrokenGroupedPlans{
    {"unequal numbers", [](Json& j) { j["layers"][1]["keep"] = {1, 4, 5}; }, "layers[1].keep: expected 1 of group 1 (experts 2 to 3)"},
    {"keep that groups cannot share", [](Json& j) { j["keep"] = 4; }, "keep: 4 does not work"},
    {"experts that groups cannot share", [](Json& j) { j["experts"] = 7; }, "groups: 7 experts cannot be divided"},
    {"too few for a token", [](Json& j) { j["experts_per_token"] = 3; }, "keep: 3 does not work"},
    {"one group", [](Json& j) { j["groups"] = {{"count", 1}, {"chosen", 1}, {"rule", "max"}}; }, "groups: expected at least two"},
    {"no rule", [](Json& j) { j["groups"].erase("rule"); }, "groups.rule: is missing"},
    {"unknown rule", [](Json& j) { j["groups"]["rule"] = "maks"; }, "groups.rule: expected one of max, top2, each"},
    {"unknown field", [](Json& j) { j["groups"]["size"] = 2; }, "groups: unknown field \"size\""},
    {"more chosen than there are", [](Json& j) { j["groups"]["chosen"] = 4; }, "groups.chosen"},
    {"groups as number", [](Json& j) { j["groups"] = 3; }, "groups"},
    {"regroup as text", [](Json& j) { j["regroup"] = "yes"; }, "regroup"},
    {"regroup written though not set", [](Json& j) { j["regroup"] = false; }, "regroup: expected true"},
    {"regroup of nothing", [](Json& j) { j["regroup"] = true; j.erase("groups"); }, "regroup: expected only with groups"},
    {"regroup of another rule",
     [](Json& j) { j["regroup"] = true; j["groups"] = {{"count", 2}, {"chosen", 2}, {"rule", "each"}}; }, "regroup: expected only"},
    {"no mass", [](Json& j) { j["layers"][1]["kept_mass"] = 0; }, "layers[1].kept_mass"},
    {"more than all mass", [](Json& j) { j["layers"][1]["kept_mass"] = 1.01; }, "layers[1].kept_mass"},
    {"mass as text", [](Json& j) { j["layers"][1]["kept_mass"] = "0.5"; }, "layers[1].kept_mass"},
    {"nothing to correct by", [](Json& j) { j["layers"][1].erase("kept_mass"); }, "layers[1].kept_mass: is missing"},
    {"correct_drift written though not set", [](Json& j) { j["correct_drift"] = false; }, "correct_drift: expected true"},
};

const std::vector<BrokenPlan> kBrokenSlimPlans{
    {"no width", [](Json& j) { j.erase("width"); }, "layers[0].atoms: expected only in a plan with width"},
    {"width 0", [](Json& j) { j["width"] = 0; }, "width"},
    {"width beyond an int", [](Json& j) { j["width"] = std::int64_t{1} << 31; }, "width"},
    {"a narrower width", [](Json& j) { j["width"] = 7; }, "layers[0].atoms[0][1]: expected a number from 6 to 7, got 8"},
    {"one layer without", [](Json& j) { j["layers"][1].erase("atoms"); }, "layers[1].atoms: is missing"},
    {"a list too few", [](Json& j) { j["layers"][1]["atoms"].erase(2); }, "layers[1].atoms: expected 3 lists"},
    {"a list too many", [](Json& j) { j["layers"][1]["atoms"].push_back(Json::array()); }, "layers[1].atoms: expected 3 lists"},
    {"no list", [](Json& j) { j["layers"][1]["atoms"] = 3; }, "layers[1].atoms: expected an array"},
    {"ranges as number", [](Json& j) { j["layers"][1]["atoms"][1] = 3; }, "layers[1].atoms[1]: expected an array of [begin, end)"},
    {"a range as number", [](Json& j) { j["layers"][1]["atoms"][1] = {3}; }, "layers[1].atoms[1][0]: expected [begin, end), got 3"},
    {"half a range", [](Json& j) { j["layers"][1]["atoms"][1][0] = Json::array({1}); }, "layers[1].atoms[1][0]"},
    {"fraction", [](Json& j) { j["layers"][1]["atoms"][1][0][0] = 0.5; }, "layers[1].atoms[1][0]"},
    {"negative", [](Json& j) { j["layers"][1]["atoms"][1][0][0] = -1; }, "layers[1].atoms[1][0]: expected a number from 0 to 7"},
    {"huge", [](Json& j) { j["layers"][1]["atoms"][1][0][1] = std::numeric_limits<std::uint64_t>::max(); }, "layers[1].atoms[1][0]"},
    {"begins behind the end", [](Json& j) { j["layers"][1]["atoms"][1][0] = {8, 9}; }, "layers[1].atoms[1][0]"},
    {"empty range", [](Json& j) { j["layers"][1]["atoms"][1][0] = {2, 2}; }, "layers[1].atoms[1][0]: expected a number from 3 to 8"},
    {"backward range", [](Json& j) { j["layers"][1]["atoms"][1][0] = {2, 1}; }, "layers[1].atoms[1][0]"},
    {"touching ranges", [](Json& j) { j["layers"][0]["atoms"][0][1][0] = 3; }, "layers[0].atoms[0][1]: expected a number from 4 to 7"},
    {"overlapping ranges", [](Json& j) { j["layers"][0]["atoms"][0][1][0] = 2; }, "layers[0].atoms[0][1]"},
    {"a protected expert cut", [](Json& j) { j["layers"][1]["atoms"][0] = {{0, 7}}; },
     "protect[1].expert: expert 1 of layer 3 is protected but keeps 7 of 8"},
    {"nothing at all",
     [](Json& j) {
       for (auto& layer : j["layers"]) layer["atoms"] = {Json::array(), Json::array(), Json::array()};
     },
     "layers: expected at least one atomic expert"},
};

}  // namespace

TEST_CASE("a plan over atoms comes back as it was written, one layer a line", "[plan][atoms]") {
  const given::TempFolder folder;
  write_plan(folder / "plan.json", slim());
  const Plan read = read_plan(folder / "plan.json");
  CHECK(plan_to_json(read) == plan_to_json(slim()));
  CHECK(read.width == 8);
  CHECK(read.layers[0].atoms == slim().layers[0].atoms);
  CHECK_THAT(given::bytes_of(folder / "plan.json"), Contains(R"("width": 8,
  "layers": [
    {"layer":1,"keep":[0,2,4],"atoms":[[[0,3],[5,8]],[],[[0,8]]],"unseen":1,"unseen_kept":0},)"));
}

TEST_CASE("a uniform width is one that every expert has", "[plan][atoms]") {
  CHECK(uniform_width(example(), 8) == 8);
  CHECK_FALSE(uniform_width(slim(), 8));
  Plan plan = slim();
  for (auto& layer : plan.layers) layer.atoms.assign(3, {{0, 1}, {4, 6}});
  CHECK(uniform_width(plan, 8) == 3);
  plan.layers[1].atoms[2] = {{4, 6}};
  CHECK_FALSE(uniform_width(plan, 8));
  CHECK(kept_atoms(plan) == 17);
}

TEST_CASE("a plan comes back as it was written", "[plan]") {
  const given::TempFolder folder;
  write_plan(folder / "plan.json", example());
  const Plan read = read_plan(folder / "plan.json");
  CHECK(plan_to_json(read) == plan_to_json(example()));
  CHECK(read.layers[1].keep == std::vector<int>{1, 2, 3});
  CHECK(read.protect[0].why == "super");
}

TEST_CASE("the bytes of a plan are readable and always the same", "[plan]") {
  const given::TempFolder folder;
  write_plan(folder / "plan.json", example());
  CHECK(given::bytes_of(folder / "plan.json") == R"({
  "format": "moetrim-plan",
  "version": 1,
  "method": "reap",
  "variant": "executed",
  "checkpoint_fingerprint": "ab12",
  "family": "toy_moe",
  "experts": 5,
  "keep": 3,
  "experts_per_token": 2,
  "layers": [
    {"layer":1,"keep":[0,2,4],"unseen":1,"unseen_kept":0},
    {"layer":3,"keep":[1,2,3],"unseen":0,"unseen_kept":0}
  ],
  "protect": [
    {"layer":1,"expert":4,"why":"super"},
    {"layer":3,"expert":1,"why":"requested"}
  ],
  "source": {"seed":0}
}
)");
}

TEST_CASE("a plan with groups and kept mass comes back as it was written", "[plan][groups][drift]") {
  const given::TempFolder folder;
  Plan plan = grouped();
  const auto read = [&] {
    write_plan(folder / "plan.json", plan);
    return read_plan(folder / "plan.json");
  };
  CHECK(plan_to_json(read()) == plan_to_json(plan));
  CHECK(read().groups == plan.groups);
  CHECK(read().layers[1].kept_mass == 0.5);
  CHECK((read().correct_drift && !read().regroup));
  CHECK_THAT(given::bytes_of(folder / "plan.json"), Contains(R"("groups": {"count":3,"chosen":2,"rule":"max"},
  "correct_drift": true,
  "layers": [
    {"layer":1,"keep":[0,2,4],"unseen":1,"unseen_kept":0,"kept_mass":0.75},)"));
  plan.regroup = true;
  plan.keep = 2;
  plan.layers[0].keep = {3, 4};
  plan.layers[1].keep = {1, 5};
  CHECK(read().regroup);
  CHECK(read().layers[0].keep == std::vector<int>{3, 4});
}

TEST_CASE("a broken plan is refused with file and field", "[plan]") {
  const given::TempFolder folder;
  const auto file = folder / "broken.json";
  const auto check = [&](const Plan& plan, const BrokenPlan& broken) {
    Json json = plan_to_json(plan);
    broken.damage(json);
    given::write_text(file, json.dump());
    CHECK_THAT(given::thrown_by([&] { read_plan(file); }),
               Contains("InvalidInput") && Contains("broken.json") && Contains(broken.expected));
  };
  for (const auto& broken : kBrokenPlans) {
    DYNAMIC_SECTION(broken.name) { check(example(), broken); }
  }
  for (const auto& broken : kBrokenGroupedPlans) {
    DYNAMIC_SECTION("groups: " << broken.name) { check(grouped(), broken); }
  }
  for (const auto& broken : kBrokenSlimPlans) {
    DYNAMIC_SECTION("atoms: " << broken.name) { check(slim(), broken); }
  }
}

TEST_CASE("text that is no JSON is refused with the file", "[plan]") {
  const given::TempFolder folder;
  for (const char* text : {"", "{", "[1,2", "{\"format\":\"moetrim-plan\"} x", "\xff\xfe", "nul"}) {
    CAPTURE(text);
    given::write_text(folder / "broken.json", text);
    CHECK_THAT(given::thrown_by([&] { read_plan(folder / "broken.json"); }),
               Contains("InvalidInput") && Contains("broken.json"));
  }
  CHECK_FALSE(given::thrown_by([&] { read_plan(folder / "missing.json"); }).empty());
}

TEST_CASE("a plan that could not be read again is not written", "[plan]") {
  const given::TempFolder folder;
  Plan plan = example();
  plan.layers[0].keep = {4, 2, 0};
  CHECK_THAT(given::thrown_by([&] { write_plan(folder / "plan.json", plan); }),
             Contains("InvalidInput") && Contains("layers[0].keep[1]"));
  CHECK_FALSE(std::filesystem::exists(folder / "plan.json"));
}

TEST_CASE("what make_plan gives can be written and read for every method", "[plan][every]") {
  const given::TempFolder folder;
  const auto statistics = given::random_second_order(3, 7, 4, 2);
  for (const ScoringMethod* method : scoring_methods()) {
    if (method->grain == Grain::atom) continue;  // see atom_plan_test.cpp
    CAPTURE(method->name);
    const auto scores = score(statistics, *method, {});
    const Plan plan = make_plan(statistics, scores, {.keep = KeepBudget::parse("0.5"), .protect = {"super", "1:6"}}, Variant::executed);
    CHECK(plan.keep == 4);
    write_plan(folder / "plan.json", plan);
    CHECK(plan_to_json(read_plan(folder / "plan.json")) == plan_to_json(plan));
  }
}
