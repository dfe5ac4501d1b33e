// Plans that repeat experts: how copies are shared out, and which routers are refused.
#include "testing.h"

#include "given.h"
#include "moetrim/upcycle.h"

using namespace moetrim;

namespace {

Scores scores_of(std::vector<std::vector<double>> values) {
  Scores scores;
  scores.method = "by hand";
  for (std::size_t l = 0; l < values.size(); ++l) scores.layers.push_back(static_cast<int>(l));
  scores.values = std::move(values);
  return scores;
}

StatisticsManifest manifest_of(const char* family, const char* router = "softmax") {
  StatisticsManifest manifest = given::manifest(1, 4, 2);
  manifest.family = family;
  manifest.router = router;
  manifest.gates_normalised = true;
  manifest.router_selects_by_logit = true;
  return manifest;
}

std::string refusal(const StatisticsManifest& manifest) {
  UpcycleRequest request{.uniform = true, .top_k = UpcycleTopK::scale};
  request.parse_to("2x");
  try {
    check_upcycle(manifest, request);
  } catch (const InvalidInput& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("copies go by largest remainder, and each expert has one slot", "[plan][upcycle]") {
  UpcycleRequest request;
  request.parse_to("9");
  // 5 slots to share: 3.0, 1.5, 0.5, 0; of equal remainders the lower id wins.
  const Scores scores = scores_of({{6, 3, 1, 0}});
  const Plan plan = upcycle_plan(given::manifest(1, 4, 2), &scores, request);
  CHECK(plan.layers[0].keep == std::vector{0, 0, 0, 0, 1, 1, 1, 2, 3});
  CHECK(plan.order == SlotOrder::free);
  CHECK(plan.experts_per_token_after == 0);

  StatisticsManifest grouped = given::manifest(1, 4, 2);
  grouped.groups = {.count = 2, .chosen = 1, .rule = "max"};
  request = {};
  request.parse_to("8");
  CHECK(upcycle_plan(grouped, &scores, request).layers[0].keep == std::vector{0, 0, 1, 1, 2, 2, 2, 3});
  request = {};
  request.parse_to("7");
  CHECK_THROWS_AS(upcycle_plan(grouped, &scores, request), InvalidInput);
  const Scores negative = scores_of({{1, -1, 1, 1}});
  CHECK_THROWS_AS(upcycle_plan(given::manifest(1, 4, 2), &negative, request), InvalidInput);
}

TEST_CASE("only routers whose copies share a gate weight keep the function", "[plan][upcycle]") {
  using Catch::Matchers::Contains;
  CHECK(refusal(manifest_of("mixtral")).empty());
  CHECK(refusal(manifest_of("glm4_moe", "sigmoid")).empty());
  CHECK_THAT(refusal(manifest_of("llama4", "sigmoid")), Contains("inputs"));
  CHECK_THAT(refusal(manifest_of("phimoe")), Contains("two experts"));
  StatisticsManifest biased = manifest_of("ernie4_5_moe");
  biased.router_selects_by_logit = false;
  CHECK_THAT(refusal(biased), Contains("selection bias"));
  StatisticsManifest pairs = manifest_of("deepseek_v3", "sigmoid");
  pairs.router_selects_by_logit = false;
  pairs.groups = {.count = 2, .chosen = 1, .rule = "top2"};
  CHECK_THAT(refusal(pairs), Contains("two best"));
  StatisticsManifest sums = manifest_of("glm4_moe", "sigmoid");
  sums.gates_normalised = false;
  CHECK_THAT(refusal(sums), Contains("add up"));
  UpcycleRequest uneven{.uniform = true, .top_k = UpcycleTopK::scale};
  uneven.parse_to("6");
  CHECK_THROWS_AS(check_upcycle(manifest_of("mixtral"), uneven), UsageError);
}
