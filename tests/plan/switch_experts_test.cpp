// Ranked experts to plans: what each action changes, and when it is refused.
#include "testing.h"

#include "given.h"
#include "moetrim/switching.h"

using namespace moetrim;

namespace {

/// Two layers of six experts, two a token. Ranked: 5 and 4 of layer 0, then in turn 0, 1, … of layer 1 and 3, 2, … of layer
/// 0.
struct Given {
  Statistics statistics;
  Contrast contrast;

  explicit Given(const char* family = "qwen3_moe", RouterGroups groups = {})
      : statistics(given::random_statistics(2, 6, 2)) {
    statistics.manifest.family = family;
    statistics.manifest.groups = groups;
    contrast.checkpoint_fingerprint = statistics.manifest.checkpoint_fingerprint;
    contrast.family = family;
    contrast.experts = 6;
    contrast.layers = {0, 1};
    double score = 1;
    const auto add = [&](int layer, int expert) {
      contrast.ranked.push_back({.layer = layer, .expert = expert, .score = score -= 0.05});
    };
    add(0, 5);
    add(0, 4);
    for (int i = 0; i < 6; ++i) {
      add(1, i);
      if (i < 4) add(0, 3 - i);
    }
  }

  Plan apply(const SwitchRequest& request) const { return apply(request, whole_plan(statistics.manifest)); }
  Plan apply(const SwitchRequest& request, Plan base) const {
    return switch_experts(statistics, contrast, request, std::move(base));
  }
  std::string refused(const SwitchRequest& request) const {
    return given::thrown_by([&] { apply(request); });
  }
};

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("dropping takes the same number from every layer, or says what would", "[switch]") {
  const Given given;
  const Plan plan = given.apply({.action = SwitchAction::drop, .choice = {.per_layer = 2}});
  CHECK(plan.keep == 4);
  CHECK(plan.layers[0].keep == std::vector<int>{0, 1, 2, 3});
  CHECK(plan.layers[1].keep == std::vector<int>{2, 3, 4, 5});
  const std::string message = given.refused({.action = SwitchAction::drop, .choice = {.top = 3}});
  CHECK(has(message, "they lie in 2 of 2 layers"));
  CHECK(has(message, "--per-layer 2 drops them and 1 more"));
  Given even;
  even.contrast.ranked.erase(even.contrast.ranked.begin());
  CHECK(even.apply({.action = SwitchAction::drop, .choice = {.top = 2}}).layers[0].keep == std::vector<int>{0, 1, 2, 3, 5});
}

TEST_CASE("strengthening is a factor per expert, wherever they are", "[switch]") {
  const Given given;
  const Plan plan = given.apply({.action = SwitchAction::strengthen, .factor = 1.5, .choice = {.top = 3}});
  CHECK(plan.keep == 6);
  REQUIRE(plan.layers[0].scale.size() == 2);
  CHECK((plan.layers[0].scale[0].expert == 4 && plan.layers[0].scale[0].factor == 1.5));
  CHECK(plan.layers[1].scale.size() == 1);
  CHECK(has(given.refused({.action = SwitchAction::strengthen, .factor = 1, .choice = {.top = 1}}), "not 1"));
  CHECK(has(
      given::thrown_by([&] { given.apply({.action = SwitchAction::strengthen, .factor = 2, .choice = {.top = 1}}, plan); }),
      "changes expert 5 of layer 0 already"));
}

TEST_CASE("a selection bias switches off where there is one, and leaves enough experts", "[switch]") {
  CHECK(has(Given().refused({.action = SwitchAction::bias, .choice = {.top = 1}}), "qwen3_moe has no selection bias"));
  const Given given("deepseek_v3");
  const Plan plan = given.apply({.action = SwitchAction::bias, .choice = {.top = 3}});
  CHECK(plan.layers[0].silence == std::vector<int>{4, 5});
  CHECK(plan.layers[1].silence == std::vector<int>{0});
  CHECK(has(given.refused({.action = SwitchAction::bias, .choice = {.per_layer = 5}}),
            "layer 0 would have 1 experts to choose among"));
}

TEST_CASE("groups lose the same number each", "[switch]") {
  const Given given("deepseek_v3", {.count = 2, .chosen = 1, .rule = "top2"});
  CHECK(has(given.refused({.action = SwitchAction::drop, .choice = {.per_layer = 1}}), "nearest that work are 0 and 2"));
  const Plan plan = given.apply({.action = SwitchAction::drop, .choice = {.per_layer = 2}});
  CHECK(plan.layers[0].keep == std::vector<int>{0, 1, 3, 4});
  CHECK(plan.layers[1].keep == std::vector<int>{1, 2, 4, 5});
  CHECK(has(given.refused({.action = SwitchAction::drop, .choice = {.per_layer = 4}}), "keep 2"));
}

TEST_CASE("rankings and plans of other checkpoints are refused", "[switch]") {
  Given given;
  given.contrast.checkpoint_fingerprint = "00000000000000000000000000000000";
  CHECK(has(given.refused({.action = SwitchAction::drop, .choice = {.per_layer = 1}}),
            "ranked experts are of checkpoint 0000"));
  CHECK(has(Given().refused({.action = SwitchAction::drop, .choice = {}}), "how many experts"));
}
