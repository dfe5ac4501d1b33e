// What resampled slices say about a kept set.
#include "testing.h"

#include "given.h"
#include "moetrim/confidence.h"

using namespace moetrim;
using moetrim::testing::Approx;

namespace {

std::optional<KeptSetConfidence> confidence(const LayerStatistics& layer, int resamples = 4000) {
  const auto statistics = given::statistics(given::manifest(1, layer.experts, 1), {layer});
  return kept_set_confidence(statistics, find_scoring_method("frequency"), {}, KeepBudget::parse("1"), {}, false, resamples,
                             7);
}

}  // namespace

TEST_CASE("two slices that disagree, by hand", "[confidence]") {
  LayerStatistics layer(0, 1, 3);
  layer.at(Stat::routed_count, 0, 2, 0) = 5;  // slice 2 keeps expert 0, slice 4 expert 1, both together expert 1
  layer.at(Stat::routed_count, 0, 4, 1) = 6;
  layer.token_count[2] = layer.token_count[4] = 10;
  const auto found = confidence(layer);
  REQUIRE(found);
  CHECK(found->slices == 2);
  // Slice 2 is drawn twice in a quarter of the resamples, and only then expert 0 stays.
  REQUIRE(found->layers[0].uncertain.size() == 2);
  CHECK(found->layers[0].uncertain[0].share == Approx(0.25).margin(0.03));
  CHECK(!found->layers[0].uncertain[0].kept);
  CHECK(found->layers[0].uncertain[1].share == Approx(0.75).margin(0.03));
  CHECK(found->layers[0].uncertain[1].kept);
  CHECK(found->overlap == Approx(0.75).margin(0.03));
  CHECK((found->lower == 0 && found->upper == 1));
}

TEST_CASE("slices that agree leave no doubt, and one slice says nothing", "[confidence]") {
  LayerStatistics layer(0, 1, 3);
  for (int slice = 0; slice < 3; ++slice) {
    layer.at(Stat::routed_count, 0, slice, 2) = slice + 1;
    layer.token_count[static_cast<std::size_t>(slice)] = 10;
  }
  const auto found = confidence(layer, 100);
  REQUIRE(found);
  CHECK((found->overlap == Approx(1) && found->lower == 1 && found->layers[0].uncertain.empty()));
  LayerStatistics single(0, 1, 3);
  single.token_count[0] = 10;
  CHECK(!confidence(single, 100));
}
