// Super experts: the worked example in both readings, and what a percentile alone would get wrong.
#include "testing.h"

#include <optional>

#include "given.h"
#include "moetrim/plan.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

using Found = std::vector<std::pair<int, int>>;  // (layer, expert)

Found found(const Statistics& statistics, Variant variant) {
  Found result;
  for (const auto& expert : find_super_experts(statistics, variant)) {
    CHECK(expert.why == "super");
    result.emplace_back(expert.layer, expert.expert);
  }
  return result;
}

/// Softmax top-2 routing, experts in rank order, and the largest |f| of each.
struct Peaks {
  std::vector<int> experts;
  std::vector<double> values;
};
const std::vector<Peaks> kLayerA{{{0, 1}, {1, 90}}, {{2, 0}, {2, 3}}, {{1, 0}, {4, 1}}};
const std::vector<Peaks> kLayerB{{{3, 2}, {5, 1}}, {{0, 2}, {2, 6}}, {{2, 3}, {1, 8}}};

enum class FirstRow { by_token, by_slot };

/// The row that a per-sequence expert batch has first: the earliest token, or the earliest at the lowest slot.
std::optional<double> first_row(const std::vector<Peaks>& tokens, int expert, FirstRow order) {
  std::optional<double> value;
  std::size_t best_slot = 2;
  for (const Peaks& token : tokens) {
    for (std::size_t slot = 0; slot < 2; ++slot) {
      const bool earlier = order == FirstRow::by_slot ? slot < best_slot : !value;
      if (token.experts[slot] != expert || !earlier) continue;
      value = token.values[slot];
      best_slot = slot;
    }
  }
  return value;
}

LayerStatistics layer(int id, const std::vector<Peaks>& tokens, FirstRow order) {
  LayerStatistics result(id, 1, 4);
  for (const Peaks& token : tokens) {
    for (std::size_t i = 0; i < 2; ++i) {
      double& largest = result.at(Stat::max_abs, 0, 0, token.experts[i]);
      largest = std::max(largest, token.values[i]);
    }
  }
  for (int e = 0; e < 4; ++e) result.at(Stat::max_abs_first_row, 0, 0, e) = first_row(tokens, e, order).value_or(0);
  return result;
}

Statistics example(FirstRow order) {
  return given::statistics(given::manifest(2, 4, 2), {layer(0, kLayerA, order), layer(1, kLayerB, order)});
}

/// One task; values per layer, absolute ids given.
Statistics with_maxima(int layers, const std::vector<std::pair<int, std::vector<double>>>& values) {
  std::vector<LayerStatistics> list;
  const int experts = static_cast<int>(values.front().second.size());
  for (const auto& [id, maxima] : values) {
    auto& added = list.emplace_back(id, 1, experts);
    for (int e = 0; e < experts; ++e) {
      added.at(Stat::max_abs, 0, e % kSlices, e) = maxima[static_cast<std::size_t>(e)];
      added.at(Stat::max_abs_first_row, 0, e % kSlices, e) = maxima[static_cast<std::size_t>(e)];
    }
  }
  return given::statistics(given::manifest(layers, experts, 2), list);
}

}  // namespace

TEST_CASE("all rows: the one outlier of the worked example", "[plan][super]") {
  const auto statistics = example(FirstRow::by_token);
  const auto thresholds = super_expert_thresholds(statistics, Variant::executed);
  CHECK(thresholds.layers_end == 2);
  CHECK(thresholds.percentile == testing::Approx(87.13));
  CHECK(thresholds.tenth == 9);
  CHECK(thresholds.least == 45);  // ten times the median of 2 2 3 6 8 90
  CHECK(found(statistics, Variant::executed) == Found{{0, 1}});
}

TEST_CASE("first row as published: right in token order, wrong in slot order", "[plan][super]") {
  const auto by_token = super_expert_thresholds(example(FirstRow::by_token), Variant::official);
  CHECK(by_token.percentile == testing::Approx(87.025));
  CHECK(by_token.tenth == 9);
  CHECK(found(example(FirstRow::by_token), Variant::official) == Found{{0, 1}});

  const auto by_slot = super_expert_thresholds(example(FirstRow::by_slot), Variant::official);
  CHECK(by_slot.percentile == testing::Approx(4.965));
  CHECK(by_slot.tenth == 0);  // floor(5 / 10): no condition any more
  CHECK(found(example(FirstRow::by_slot), Variant::official) == Found{{1, 3}});
  CHECK(found(example(FirstRow::by_slot), Variant::executed) == Found{{0, 1}});
}

TEST_CASE("a model without outliers has no super experts, where a percentile always finds one", "[plan][super]") {
  const auto statistics = with_maxima(2, {{0, {1, 4, 2, 0}}, {1, {2, 0, 1, 5}}});
  CHECK(found(statistics, Variant::executed).empty());
  CHECK(found(statistics, Variant::official) == Found{{1, 3}});
  CHECK(found(with_maxima(2, {{0, {3, 3, 3}}, {1, {3, 3, 3}}}), Variant::executed).empty());
  CHECK(found(with_maxima(2, {{0, {0, 0, 0}}, {1, {0, 0, 0}}}), Variant::executed).empty());
}

TEST_CASE("a median over unreached experts would ask for nothing", "[plan][super]") {
  CHECK(found(with_maxima(2, {{0, {0, 0, 0, 0, 0, 4, 5}}}), Variant::executed).empty());
  CHECK(found(with_maxima(2, {{0, {0, 0, 0, 0, 4, 5, 99}}}), Variant::executed) == Found{{0, 6}});
}

TEST_CASE("candidates are by absolute layer id, half rounded to even", "[plan][super]") {
  const std::vector<double> quiet{1, 1, 1, 1, 1}, loud{1, 1, 400, 1, 1};
  // 8 layers: ids below 6. The first three are dense.
  CHECK(found(with_maxima(8, {{3, quiet}, {4, quiet}, {5, loud}, {6, quiet}, {7, quiet}}), Variant::executed) == Found{{5, 2}});
  CHECK(found(with_maxima(8, {{3, quiet}, {4, quiet}, {5, quiet}, {6, loud}, {7, quiet}}), Variant::executed).empty());
  const std::vector<std::pair<int, int>> ends{{1, 1}, {2, 2}, {3, 2}, {4, 3}, {6, 4}, {10, 8}, {48, 36}, {61, 46}};
  for (const auto& [layers, end] : ends) {
    CAPTURE(layers);
    CHECK(super_expert_thresholds(with_maxima(layers, {{0, quiet}}), Variant::executed).layers_end == end);
  }
  CHECK_THAT(given::thrown_by([&] { find_super_experts(with_maxima(8, {{6, loud}}), Variant::executed); }),
             Contains("InvalidInput") && Contains("three quarters"));
}

TEST_CASE("the largest value over tasks counts", "[plan][super]") {
  auto statistics = example(FirstRow::by_token);
  LayerStatistics two(0, 2, 4);
  two.add_task(1, statistics.layers[0], 0);
  LayerStatistics other(1, 2, 4);
  other.add_task(0, statistics.layers[1], 0);
  const auto both = given::statistics(given::manifest(2, 4, 2, 2), {two, other});
  CHECK(found(both, Variant::executed) == Found{{0, 1}});
}

TEST_CASE("a super expert stays whatever its score", "[plan][super]") {
  const auto statistics = example(FirstRow::by_slot);
  Scores scores;
  scores.method = "by-hand";
  scores.variant = "executed";
  scores.layers = {0, 1};
  scores.values = {{4, 1, 3, 2}, {4, 3, 2, 1}};
  const auto kept = [&](std::vector<std::string> protect, Variant variant) {
    const Plan plan = make_plan(statistics, scores, {.keep = KeepBudget::parse("2"), .protect = std::move(protect)}, variant);
    return std::vector{plan.layers[0].keep, plan.layers[1].keep};
  };
  using Ids = std::vector<int>;
  CHECK(kept({}, Variant::executed) == std::vector<Ids>{{0, 2}, {0, 1}});
  CHECK(kept({"super"}, Variant::executed) == std::vector<Ids>{{0, 1}, {0, 1}});
  CHECK(kept({"super"}, Variant::official) == std::vector<Ids>{{0, 2}, {0, 3}});
  CHECK(kept({"super,1:2"}, Variant::executed) == std::vector<Ids>{{0, 1}, {0, 2}});
}
