// Groups of a router: which there can be, and their way through manifest.json.
#include "testing.h"

#include <functional>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/statistics.h"

using namespace moetrim;
using Catch::Matchers::Contains;
using Json = nlohmann::ordered_json;

namespace {

const std::filesystem::path kFile = "run.stats/manifest.json";

/// 8 experts in 4 groups, of which a token uses 2; two experts per token.
StatisticsManifest example() {
  auto manifest = given::manifest(2, 8, 2);
  manifest.router_selects_by_logit = false;
  manifest.groups = {.count = 4, .chosen = 2, .rule = "top2"};
  return manifest;
}

struct BrokenGroups {
  const char* name;
  std::function<void(Json&)> damage;
  const char* expected;
};

const std::vector<BrokenGroups> kBrokenGroups{
    {"unequal groups", [](Json& j) { j["experts"] = 10; }, "groups: 10 experts cannot be divided into 4 groups"},
    {"no group", [](Json& j) { j["groups"]["count"] = 0; }, "groups.count"},
    {"more groups than experts", [](Json& j) { j["groups"]["count"] = 16; }, "groups.count"},
    {"none chosen", [](Json& j) { j["groups"]["chosen"] = 0; }, "groups.chosen"},
    {"more chosen than there are", [](Json& j) { j["groups"]["chosen"] = 5; }, "groups.chosen"},
    {"unknown rule", [](Json& j) { j["groups"]["rule"] = "top3"; }, "groups.rule"},
    {"no rule", [](Json& j) { j["groups"]["rule"] = "none"; }, "groups.rule"},
    {"a field is missing", [](Json& j) { j["groups"].erase("chosen"); }, "groups.chosen: is missing"},
    {"misspelt field", [](Json& j) { j["groups"]["chose"] = 2; }, "did you mean \"chosen\"?"},
    {"no object", [](Json& j) { j["groups"] = 4; }, "groups"},
    {"each, but some are chosen", [](Json& j) { j["groups"]["rule"] = "each"; }, "from all 4 groups, got 2"},
    {"each, but experts per token do not divide", [](Json& j) { j["groups"] = {{"count", 4}, {"chosen", 4}, {"rule", "each"}}; },
     "2 per token do not divide"},
    {"top2 of single experts", [](Json& j) { j["groups"]["count"] = 8; }, "at least 2 experts in a group, there are 1"},
    {"more per token than the chosen groups have", [](Json& j) { j["experts_per_token"] = 5; }, "at least 3 experts in a group"},
    {"selection by logit alone", [](Json& j) { j["router_selects_by_logit"] = true; }, "router_selects_by_logit"},
};

}  // namespace

TEST_CASE("groups come back as they were written", "[statistics][groups]") {
  const auto json = manifest_to_json(example());
  CHECK(json["groups"].dump() == R"({"count":4,"chosen":2,"rule":"top2"})");
  CHECK(manifest_from_json(json, kFile).groups == RouterGroups{.count = 4, .chosen = 2, .rule = "top2"});
}

TEST_CASE("a manifest without groups has no such field, as before there were any", "[statistics][groups]") {
  const auto json = manifest_to_json(given::manifest(2, 5, 2));
  CHECK_FALSE(json.contains("groups"));
  CHECK(manifest_from_json(json, kFile).groups == RouterGroups{});
}

TEST_CASE("groups that a router cannot have are refused with file and field", "[statistics][groups]") {
  for (const auto& broken : kBrokenGroups) {
    DYNAMIC_SECTION(broken.name) {
      auto json = manifest_to_json(example());
      broken.damage(json);
      CHECK_THAT(given::thrown_by([&] { manifest_from_json(json, kFile); }),
                 Contains("InvalidInput") && Contains("manifest.json") && Contains(broken.expected));
    }
  }
  auto unruly = example();
  unruly.groups.rule = "none";
  CHECK_THAT(given::thrown_by([&] { manifest_to_json(unruly); }), Contains("InvalidInput") && Contains("groups.rule"));
}

TEST_CASE("groups that all are chosen may be those of a router that selects by logit", "[statistics][groups]") {
  auto manifest = example();
  manifest.router_selects_by_logit = true;
  manifest.groups.chosen = 4;
  CHECK(manifest_from_json(manifest_to_json(manifest), kFile).groups.chosen == 4);
  manifest.groups = {.count = 1, .chosen = 1, .rule = "top2"};  // config.json has n_group 1
  CHECK(manifest_from_json(manifest_to_json(manifest), kFile).groups.rule == "top2");
}

TEST_CASE("what a group must hold", "[statistics][groups]") {
  CHECK(least_per_group({.count = 8, .chosen = 3, .rule = "max"}, 6) == 2);   // DeepSeek-V2
  CHECK(least_per_group({.count = 8, .chosen = 4, .rule = "top2"}, 8) == 2);  // DeepSeek-V3
  CHECK(least_per_group({.count = 8, .chosen = 8, .rule = "each"}, 8) == 1);  // Pangu Pro MoE
  CHECK(least_per_group({.count = 8, .chosen = 3, .rule = "max"}, 7) == 3);
  CHECK(least_per_group({.count = 8, .chosen = 8, .rule = "max"}, 2) == 1);
  CHECK(least_per_group({.count = 8, .chosen = 8, .rule = "top2"}, 2) == 2);
  CHECK(least_per_group({}, 6) == 6);
}

TEST_CASE("parts with other groups are not merged, whichever part has them", "[statistics][groups]") {
  const auto part = [](const char* digest, RouterGroups groups) {
    auto statistics = given::random_statistics(2, 8, 2, 1, 1);
    statistics.manifest.tasks[0].digest = digest;
    statistics.manifest.router_selects_by_logit = false;
    statistics.manifest.groups = std::move(groups);
    return statistics;
  };
  const RouterGroups four{.count = 4, .chosen = 2, .rule = "top2"};
  const auto refusal = [&](const RouterGroups& a, const RouterGroups& b) {
    return given::thrown_by([&] { merge_statistics(std::vector{part("one", a), part("two", b)}); });
  };
  CHECK(refusal(four, four).empty());
  CHECK_THAT(refusal(four, {.count = 4, .chosen = 2, .rule = "max"}), Contains("InvalidInput") && Contains("groups"));
  CHECK_THAT(refusal(four, {}), Contains("InvalidInput") && Contains("part 2") && Contains("groups is null"));
  CHECK_THAT(refusal({}, four), Contains("InvalidInput") && Contains("part 2") && Contains("groups"));
  const auto sum = merge_statistics(std::vector{part("one", four), part("two", four)});
  CHECK(sum.manifest.groups == four);
}
