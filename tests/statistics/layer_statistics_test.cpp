// One layer's statistics in memory: indexing, totals, adding.
#include "testing.h"

#include "given.h"
#include "moetrim/error.h"
#include "moetrim/statistics.h"

using namespace moetrim;

TEST_CASE("totals add slices, and take the largest of extremes", "[statistics]") {
  LayerStatistics layer(3, 2, 5);
  layer.at(Stat::norm_sum, 1, 0, 4) = 1.5;
  layer.at(Stat::norm_sum, 1, 7, 4) = 2.5;
  layer.at(Stat::max_abs, 1, 0, 4) = 9;
  layer.at(Stat::max_abs, 1, 7, 4) = 7;
  layer.at(Stat::tcess_logit_sum, 1, 2, 0) = -2;
  layer.token_count[kSlices] = 2;
  layer.token_count[kSlices + 7] = 3;
  CHECK(layer.task_total(Stat::norm_sum, 1) == std::vector<double>{0, 0, 0, 0, 4});
  CHECK(layer.task_total(Stat::max_abs, 1) == std::vector<double>{0, 0, 0, 0, 9});
  CHECK(layer.task_total(Stat::tcess_logit_sum, 1) == std::vector<double>{-2, 0, 0, 0, 0});
  CHECK(layer.task_total(Stat::norm_sum, 0) == std::vector<double>(5, 0.0));
  CHECK(layer.task_tokens(1) == 5);
  CHECK(layer.task_tokens(0) == 0);
}

TEST_CASE("adding combines every number by its own rule", "[statistics]") {
  const auto all = given::random_tokens(7, 2, 11);
  const std::vector<given::Token> first(all.begin(), all.begin() + 4);
  const std::vector<given::Token> second(all.begin() + 4, all.end());
  LayerStatistics sum = given::layer(2, 1, 7, first);
  sum.add(given::layer(2, 1, 7, second));
  const LayerStatistics whole = given::layer(2, 1, 7, all);
  for (int i = 0; i < kStatCount; ++i) {
    const auto stat = static_cast<Stat>(i);
    CAPTURE(stat_name(stat));
    for (std::size_t j = 0; j < whole.values(stat).size(); ++j) {
      CHECK(sum.values(stat)[j] == testing::Approx(whole.values(stat)[j]).margin(1e-15));
    }
  }
  CHECK(sum.token_count == whole.token_count);
  CHECK(sum.coactivation == whole.coactivation);
  CHECK(sum.transitions == whole.transitions);
}

TEST_CASE("one task is added to another place without touching the rest", "[statistics]") {
  const auto part = given::random_layer(0, 1, 5, 2, 3);
  LayerStatistics sum(0, 3, 5);
  sum.add_task(1, part, 0);
  CHECK(sum.task_total(Stat::gated_norm_sum, 1) == part.task_total(Stat::gated_norm_sum, 0));
  CHECK(sum.task_total(Stat::gated_norm_sum, 0) == std::vector<double>(5, 0.0));
  CHECK(sum.task_total(Stat::gated_norm_sum, 2) == std::vector<double>(5, 0.0));
  CHECK(std::equal(part.coactivation.begin(), part.coactivation.end(), sum.coactivation.begin() + 25));
}

TEST_CASE("kinds of prompts are added where there are any", "[statistics]") {
  LayerStatistics with(0, 1, 2);
  with.keep_prompts();
  with.prompt_count = {1, 2};
  with.prompt_routing = {10, 20, 30, 40};
  LayerStatistics sum(0, 2, 2);
  sum.add_task(0, LayerStatistics(0, 1, 2), 0);
  CHECK(sum.prompt_count.empty());
  sum.add_task(1, with, 0);
  sum.add_task(1, with, 0);
  sum.add_task(1, LayerStatistics(0, 1, 2), 0);
  CHECK(sum.prompt_count == std::vector<double>{0, 0, 2, 4});
  CHECK(sum.prompt_routing == std::vector<double>{0, 0, 0, 0, 20, 40, 60, 80});
}

TEST_CASE("the first slices hold what was measured in them", "[statistics]") {
  const auto layer = given::random_layer(4, 2, 5, 2, 3);
  const auto first = layer.first_slices(2);
  CHECK(first.layer == 4);
  CHECK(first.task_tokens(1) == 4);  // 11 tokens: slices 0 to 2 have two each, the others one
  CHECK(first.at(Stat::gate_sum, 1, 1, 3) == layer.at(Stat::gate_sum, 1, 1, 3));
  CHECK(first.at(Stat::gate_sum, 1, 2, 3) == 0);
  CHECK(layer.first_slices(kSlices).task_total(Stat::gate_sum, 0) == layer.task_total(Stat::gate_sum, 0));
}

TEST_CASE("shapes that do not fit are refused", "[statistics]") {
  LayerStatistics layer(1, 1, 5);
  CHECK_THROWS_AS(layer.add(LayerStatistics(1, 2, 5)), InvalidInput);
  CHECK_THROWS_AS(layer.add(LayerStatistics(2, 1, 5)), InvalidInput);
  CHECK_THROWS_AS(layer.add(LayerStatistics(1, 1, 7)), InvalidInput);
  CHECK_THROWS_AS(LayerStatistics(0, 0, 5), InvalidInput);
  CHECK_THROWS_AS(LayerStatistics(0, 1, 0), InvalidInput);
  CHECK_THROWS_AS(LayerStatistics(-1, 1, 1), InvalidInput);
}
