// Several methods added up: names, worked numbers, and what cannot be added.
#include "testing.h"

#include "moetrim/confidence.h"
#include "moetrim/plan.h"
#include "moetrim/score.h"
#include "score/second_order.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

Scores scored(const Statistics& statistics, const char* methods,
              const std::vector<std::pair<std::string, double>>& weights = {}, Variant variant = Variant::executed) {
  return score(statistics, MethodMix::parse(methods), {.variant = variant, .seed = 5}, weights);
}

std::string refusal(const std::string& text) {
  return given::thrown_by([&] { MethodMix::parse(text); });
}

/// One layer of three experts: frequency 1, 3, 4 and easy-ep 6, 0, 2 in task a; 0, 1, 1 and 1, 1, 0 in task b.
Statistics two_tasks() {
  LayerStatistics layer(0, 2, 3);
  const double counts[2][3] = {{1, 3, 4}, {0, 1, 1}};
  const double turns[2][3] = {{6, 0, 2}, {1, 1, 0}};
  for (int task = 0; task < 2; ++task) {
    layer.token_count[static_cast<std::size_t>(task * kSlices)] = 8;
    for (int e = 0; e < 3; ++e) {
      layer.at(Stat::routed_count, task, 0, e) = counts[task][e];
      layer.at(Stat::easy_ep_sum, task, 0, e) = turns[task][e];
    }
  }
  return given::statistics(given::manifest(1, 3, 1, 2), {layer});
}

}  // namespace

TEST_CASE("a mix has one spelling, however it is written", "[score][mix]") {
  CHECK(MethodMix::parse("reap").name() == "reap");
  CHECK(MethodMix::parse("easy-ep+reap").name() == "reap+easy-ep");
  CHECK(MethodMix::parse("easy-ep:0.70+reap:1").name() == "reap+easy-ep:0.7");
  for (const char* name : {"reap:3+easy-ep:0.1", "frequency:1000000+random:0.000001", "fisher+taylor:0.333333333333"}) {
    const std::string once = MethodMix::parse(name).name();
    CHECK(MethodMix::parse(once).name() == once);
  }
  CHECK(MethodMix::parse("heapr-sum:2+heapr").expert_method() == "heapr-expert+heapr-sum-expert:2");
  CHECK(MethodMix::parse("heapr+wanda").expert_method().empty());
  CHECK(MethodMix::parse("frequency+fisher").second_order()->name == "fisher");
  CHECK(MethodMix::parse("frequency+reap").second_order() == nullptr);
}

TEST_CASE("methods are added within a task, then tasks are", "[score][mix]") {
  const auto statistics = two_tasks();
  const auto near = [](std::vector<double> values, double scale) {
    for (double& value : values) value /= scale;
    return Catch::Matchers::Approx(values).margin(1e-15);
  };
  // frequency 1/8, 3/8, 4/8 and easy-ep 6/8, 0, 2/8
  CHECK_THAT(scored(statistics, "frequency+easy-ep", {{"a", 1}}).values[0], near({7, 3, 6}, 8));
  CHECK_THAT(scored(statistics, "frequency:0.5+easy-ep:3", {{"a", 1}}).values[0], near({18.5, 1.5, 8}, 8));
  // a: 7, 3, 6 of 16; b: 0.5, 1, 0.5 of 2
  CHECK_THAT(scored(statistics, "frequency+easy-ep", {{"a", 1}, {"b", 2}}).values[0], near({7 + 8, 3 + 16, 6 + 8}, 16));
  CHECK(scored(statistics, "frequency+easy-ep").method == "frequency+easy-ep");
}

TEST_CASE("a mix of atomic experts is normalised over all layers, and one of experts within each", "[score][mix]") {
  const auto statistics = given::random_second_order(3, 5, 4, 2);
  const auto sum = [](const std::vector<double>& values) {
    double total = 0;
    for (const double value : values) total += value;
    return total;
  };
  double all = 0;
  for (const auto& layer : scored(statistics, "heapr:2+wanda", {{"a", 1}}).values) all += sum(layer);
  CHECK(all == testing::Approx(3));
  for (const auto& layer : scored(statistics, "fisher:2+reap", {{"a", 1}}).values) CHECK(sum(layer) == testing::Approx(3));
}

TEST_CASE("what cannot be added is refused, naming the part", "[score][mix]") {
  CHECK_THAT(refusal("easy-ep+reep"), Contains("UsageError") && Contains("did you mean \"reap\""));
  CHECK_THAT(refusal("reap+frequency+reap"), Contains("reap is there twice"));
  CHECK_THAT(refusal("reap+heapr"), Contains("reap scores experts and heapr scores atoms"));
  CHECK_THAT(refusal("reap:2"), Contains("alone changes nothing"));
  for (const char* text : {"reap:+ean", "reap:0+ean", "reap:-1+ean", "reap:nan+ean", "reap:1e5+ean", "reap:1:2+ean",
                           "reap:2000000+ean", "reap: 1+ean", "reap:0x1+ean"}) {
    INFO(text);
    CHECK_THAT(refusal(text), Contains("UsageError") && Contains("\"reap:"));
  }
  for (const char* text : {"", "+", "reap+", "+reap", "reap++ean"}) {
    CHECK_THAT(refusal(text), Contains("no scoring method \"\""));
  }
  const auto statistics = given::random_second_order(1, 5, 4);
  CHECK_THAT(given::thrown_by([&] { scored(statistics, "heapr+wanda", {}, Variant::official); }),
             Contains("UsageError") && Contains("heapr --variant official") && Contains("alone"));
}

TEST_CASE("a mix converges and has a confidence like a method", "[score][mix]") {
  const auto statistics = given::random_statistics(2, 7, 2, 2);
  const MethodMix mix = MethodMix::parse("easy-ep+reap");
  CHECK(convergence(statistics, mix, {}, KeepBudget::parse("3")).back() == 1);
  CHECK(kept_set_confidence(statistics, mix, {}, KeepBudget::parse("3"), {}, false, 20, 0).has_value());
  CHECK_THAT(given::thrown_by([&] { convergence(statistics, MethodMix::parse("reap+fisher"), {}, KeepBudget::parse("3")); }),
             Contains("convergence: fisher needs second-order"));
}
