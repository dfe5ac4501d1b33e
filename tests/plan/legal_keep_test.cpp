// How many experts a router can do with.
#include "testing.h"

#include "given.h"
#include "moetrim/plan.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

const RouterLimits kDeepSeekV2{.experts = 160, .experts_per_token = 6, .groups = {.count = 8, .chosen = 3, .rule = "max"}};
const RouterLimits kDeepSeekV3{.experts = 256, .experts_per_token = 8, .groups = {.count = 8, .chosen = 4, .rule = "top2"}};
const RouterLimits kPangu{.experts = 64, .experts_per_token = 8, .groups = {.count = 8, .chosen = 8, .rule = "each"}};
const RouterLimits kPlain{.experts = 64, .experts_per_token = 8};

int kept(const RouterLimits& limits, const char* keep, bool regroup = false) {
  return legal_keep(limits, KeepBudget::parse(keep), regroup);
}

std::string refusal(const RouterLimits& limits, const char* keep, bool regroup = false) {
  return given::thrown_by([&] { kept(limits, keep, regroup); });
}

}  // namespace

TEST_CASE("every group keeps the same number, and enough of them", "[plan][groups]") {
  CHECK(kept(kDeepSeekV2, "16") == 16);
  CHECK(kept(kDeepSeekV3, "128") == 128);
  CHECK(kept(kDeepSeekV3, "256") == 256);
  CHECK(kept(kPangu, "8") == 8);
  CHECK(kept(kPlain, "9") == 9);
}

TEST_CASE("another number is refused with the rule, why, and the nearest that work", "[plan][groups]") {
  CHECK_THAT(refusal(kDeepSeekV3, "100"), Contains("InvalidInput") && Contains("keep 100") && Contains("8 from 4 of 8 groups") &&
                                              Contains("rule top2") && Contains("the same number, at least 2") &&
                                              Contains("nearest that work are 96 and 104"));
  CHECK_THAT(refusal(kDeepSeekV3, "8"), Contains("InvalidInput") && Contains("smallest keep that works is 16"));
  CHECK_THAT(refusal(kDeepSeekV3, "12"), Contains("InvalidInput") && Contains("smallest keep that works is 16"));
  CHECK_THAT(refusal(kDeepSeekV3, "255"), Contains("nearest that work are 248 and 256"));
  CHECK_THAT(refusal(kDeepSeekV3, "264"), Contains("InvalidInput") && Contains("keep at most 256"));
  // One expert in each of three groups is less than the six that a token takes.
  CHECK_THAT(refusal(kDeepSeekV2, "8"), Contains("InvalidInput") && Contains("rule max") && Contains("at least 2") &&
                                            Contains("smallest keep that works is 16"));
  CHECK_THAT(refusal(kPangu, "12"), Contains("InvalidInput") && Contains("1 from each of 8 groups") && Contains("rule each") &&
                                        Contains("nearest that work are 8 and 16"));
  CHECK_THAT(refusal(kPangu, "4"), Contains("smallest keep that works is 8"));
}

TEST_CASE("two experts stay in every group that adds up two, even where a token needs fewer", "[plan][groups]") {
  const RouterLimits limits{.experts = 32, .experts_per_token = 2, .groups = {.count = 8, .chosen = 4, .rule = "top2"}};
  CHECK_THAT(refusal(limits, "8"), Contains("adds up two of a group") && Contains("smallest keep that works is 16"));
  CHECK(kept({.experts = 32, .experts_per_token = 2, .groups = {.count = 8, .chosen = 4, .rule = "max"}}, "8") == 8);
}

TEST_CASE("a ratio goes to the nearest legal number, half up", "[plan][groups]") {
  struct Row {
    const char* ratio;
    int keep;
  };
  const std::vector<Row> rows{{"0.5", 80}, {"50%", 80},  {"0.475", 80}, {"0.474", 72}, {"1.0", 160},
                              {"0.1", 16}, {"0.01", 16}, {"0.99", 160}, {"0.29", 48}};  // 0.475 x 160 = 76: half way
  for (const Row& row : rows) {
    CAPTURE(row.ratio);
    CHECK(kept(kDeepSeekV2, row.ratio) == row.keep);
  }
  CHECK(kept(kPlain, "0.33") == 21);
  CHECK_THAT(refusal(kPlain, "0.1"), Contains("keep 6") && Contains("smallest keep that works is 8"));
}

TEST_CASE("10 experts in 4 groups are refused, whatever is kept", "[plan][groups]") {
  for (const char* rule : {"max", "top2"}) {
    const RouterLimits limits{.experts = 10, .experts_per_token = 2, .groups = {.count = 4, .chosen = 2, .rule = rule}};
    for (const char* keep : {"8", "4", "10", "0.5", "1.0"}) {
      CAPTURE(rule, keep);
      CHECK_THAT(refusal(limits, keep), Contains("InvalidInput") && Contains("10 experts cannot be divided into 4 groups"));
      CHECK_THAT(refusal(limits, keep, true), Contains("InvalidInput") && Contains("10 experts"));
    }
  }
}

TEST_CASE("without its groups a router keeps any number from the experts per token on", "[plan][groups]") {
  CHECK(kept(kDeepSeekV3, "100", true) == 100);
  CHECK(kept(kDeepSeekV3, "8", true) == 8);
  CHECK(kept(kDeepSeekV2, "0.29", true) == 46);
  CHECK_THAT(refusal(kDeepSeekV3, "7", true), Contains("routed to 8") && Contains("smallest keep that works is 8"));
  const RouterLimits top1{.experts = 32, .experts_per_token = 1, .groups = {.count = 8, .chosen = 4, .rule = "top2"}};
  CHECK_THAT(refusal(top1, "1", true), Contains("adds up two") && Contains("smallest keep that works is 2"));
}

TEST_CASE("regrouping is refused where it would change the rule, or nothing", "[plan][groups]") {
  CHECK_THAT(refusal(kPangu, "16", true), Contains("InvalidInput") && Contains("regroup") && Contains("rule each"));
  CHECK_THAT(refusal(kPlain, "16", true), Contains("InvalidInput") && Contains("regroup") && Contains("no groups"));
}

TEST_CASE("an empty budget is a usage error", "[plan][groups]") {
  CHECK_THAT(given::thrown_by([] { legal_keep(kDeepSeekV3, {}, false); }), Contains("UsageError"));
}
