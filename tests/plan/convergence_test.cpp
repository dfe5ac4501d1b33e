// How soon the kept set settles.
#include "testing.h"

#include "given.h"
#include "moetrim/plan.h"

using namespace moetrim;

TEST_CASE("overlap with the final kept set, by hand", "[plan]") {
  LayerStatistics layer(0, 1, 5);
  layer.at(Stat::routed_count, 0, 0, 0) = 5;  // slice 0 prefers {0, 1}
  layer.at(Stat::routed_count, 0, 0, 1) = 4;
  layer.at(Stat::routed_count, 0, 1, 2) = 9;  // with slice 1: {0, 2}
  layer.at(Stat::routed_count, 0, 4, 3) = 8;  // with slice 4: {2, 3}
  for (int slice = 0; slice < kSlices; ++slice) layer.token_count[static_cast<std::size_t>(slice)] = 10;
  const auto statistics = given::statistics(given::manifest(1, 5, 2), {layer});
  const auto overlaps = convergence(statistics, find_scoring_method("frequency"), {}, KeepBudget::parse("2"));
  const double third = 1.0 / 3.0;
  CHECK(overlaps == std::vector<double>{0, third, third, third, 1, 1, 1, 1});
}

TEST_CASE("all slices agree with themselves, for every method", "[plan][every]") {
  const auto statistics = given::random_statistics(3, 11, 3, 2);
  for (const ScoringMethod* method : scoring_methods()) {
    CAPTURE(method->name);
    if (method->second_order) {
      CHECK_THROWS_AS(convergence(statistics, *method, {}, KeepBudget::parse("50%")), InvalidInput);
      continue;
    }
    const auto overlaps = convergence(statistics, *method, {}, KeepBudget::parse("50%"), {{"b", 1.0}});
    REQUIRE(overlaps.size() == kSlices);
    CHECK(overlaps.back() == 1);
    for (const double overlap : overlaps) CHECK((overlap >= 0 && overlap <= 1));
    if (method->name == "random") CHECK(overlaps == std::vector<double>(kSlices, 1.0));
  }
}

TEST_CASE("a budget that keeps nothing has no overlap", "[plan]") {
  const auto statistics = given::random_statistics(1, 5, 2);
  CHECK_THROWS_AS(convergence(statistics, find_scoring_method("reap"), {}, KeepBudget::parse("0.01")), InvalidInput);
  CHECK_THROWS_AS(convergence(statistics, find_scoring_method("reap"), {}, KeepBudget::parse("6")), InvalidInput);
}
