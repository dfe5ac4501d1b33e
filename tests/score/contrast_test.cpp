// fTRI and nPMI, by hand.
#include "testing.h"

#include <cmath>

#include "given.h"
#include "moetrim/contrast.h"

using namespace moetrim;
using moetrim::testing::Approx;

namespace {

/// Tasks a and b, ten tokens each in slices 0 and 1, one of three experts a token.
Statistics two_tasks() {
  LayerStatistics layer(3, 2, 3);
  const auto put = [&](int task, int slice, std::vector<double> routed) {
    for (int e = 0; e < 3; ++e) {
      layer.at(Stat::routed_count, task, slice, e) = routed[static_cast<std::size_t>(e)];
      layer.token_count[static_cast<std::size_t>(task * kSlices + slice)] += routed[static_cast<std::size_t>(e)];
    }
  };
  put(0, 0, {4, 1, 0});
  put(0, 1, {2, 3, 0});
  put(1, 0, {1, 4, 0});
  put(1, 1, {3, 2, 0});
  return given::statistics(given::manifest(1, 3, 1, 2), {layer});
}

}  // namespace

TEST_CASE("fTRI by hand, with the jackknife over slices", "[contrast]") {
  const Contrast contrast = contrast_tasks(two_tasks(), {"a"}, {"b"}, 1);
  REQUIRE(contrast.ranked.size() == 2);  // nothing reached expert 2
  const RankedExpert& first = contrast.ranked[0];
  CHECK((first.layer == 3 && first.expert == 0));
  CHECK(first.score == Approx(0.6 - 0.4));
  CHECK((first.count == 6 && first.against_count == 4));
  // Leaving a slice out: a has rates 2/5 and 4/5, b 3/5 and 1/5; each variance is 1/2 (0.2^2 + 0.2^2).
  REQUIRE(first.standard_error);
  CHECK(*first.standard_error == Approx(std::sqrt(0.04 + 0.04)));
  CHECK(first.agreement == 0.5);  // slice 0: 0.8 against 0.2, slice 1: 0.4 against 0.6
  CHECK((contrast.ranked[1].expert == 1 && contrast.ranked[1].score == Approx(-0.2)));
  CHECK(contrast_tasks(two_tasks(), {"a"}, {"b"}, 0).ranked[1].expert == 2);  // ranked between them with 0
  CHECK(contrast_tasks(two_tasks(), {"a"}, {"b"}, 11).ranked.empty());
}

TEST_CASE("sides that cannot be compared are refused", "[contrast]") {
  const Statistics statistics = two_tasks();
  CHECK(given::thrown_by([&] { contrast_tasks(statistics, {"a"}, {"a"}, 1); }).find("on both sides") != std::string::npos);
  CHECK(given::thrown_by([&] { contrast_tasks(statistics, {"a", "a"}, {"b"}, 1); }).find("named twice") !=
        std::string::npos);
  Statistics empty = statistics;
  std::fill(empty.layers[0].token_count.begin() + kSlices, empty.layers[0].token_count.end(), 0.0);
  CHECK(given::thrown_by([&] { contrast_tasks(empty, {"a"}, {"b"}, 1); }).find("no token of it was counted") !=
        std::string::npos);
}

TEST_CASE("nPMI: only together 1, independent 0, never together -1", "[contrast]") {
  // 16 tokens, 4 of the marker. Expert 0 has those 4 alone, 1 has 2 of 8, 2 has none of 4, 3 is not used, 4 has 1 of 2.
  const MarkerCounts counts{
      .layer = 5, .tokens = 16, .marker_tokens = 4, .routed = {4, 8, 4, 0, 2}, .marker = {4, 2, 0, 0, 1}};
  auto manifest = given::manifest(6, 5, 1);
  const Contrast contrast = contrast_marker(manifest, {counts}, 1);
  std::vector<int> order;
  for (const auto& entry : contrast.ranked) order.push_back(entry.expert);
  REQUIRE(order == std::vector<int>{0, 4, 1, 2});
  CHECK(contrast.ranked[0].score == 1);
  CHECK(contrast.ranked[0].pmi == 2);
  CHECK(contrast.ranked[1].score == 0.25);  // PMI log2(1/4 / (1/8)) = 1 over -log2(1/16)
  CHECK(contrast.ranked[2].score == 0);
  CHECK(contrast.ranked[3].score == -1);
  CHECK(!contrast.ranked[3].pmi);
  CHECK(contrast_marker(manifest, {counts}, 4).ranked.size() == 3);

  const auto refused = [&](double tokens, double marker_tokens, std::vector<double> routed, std::vector<double> marker) {
    return given::thrown_by([&] {
      contrast_marker(
          manifest, {{.layer = 5, .tokens = tokens, .marker_tokens = marker_tokens, .routed = routed, .marker = marker}}, 1);
    });
  };
  CHECK(refused(16, 0, {4}, {0}).find("no counted token is part") != std::string::npos);
  CHECK(refused(16, 16, {4}, {4}).find("every counted token") != std::string::npos);
  CHECK(refused(16, 4, {4}, {5}).find("contradict") != std::string::npos);
}

TEST_CASE("a ranking survives its file, and a damaged one is named", "[contrast]") {
  const given::TempFolder folder;
  Contrast contrast = contrast_tasks(two_tasks(), {"a"}, {"b"}, 0);
  write_contrast(folder / "r.json", contrast);
  const Contrast again = read_contrast(folder / "r.json");
  write_contrast(folder / "again.json", again);
  CHECK(given::bytes_of(folder / "r.json") == given::bytes_of(folder / "again.json"));
  REQUIRE(again.ranked.size() == 3);
  CHECK(again.ranked[0].standard_error == contrast.ranked[0].standard_error);
  const auto damaged = [&](auto change) {
    Contrast bad = contrast;
    change(bad);
    write_contrast(folder / "bad.json", bad);
    return given::thrown_by([&] { read_contrast(folder / "bad.json"); });
  };
  CHECK(damaged([](Contrast& c) { std::swap(c.ranked[0], c.ranked[2]); }).find("descending") != std::string::npos);
  CHECK(damaged([](Contrast& c) { c.ranked[1] = c.ranked[0]; }).find("twice") != std::string::npos);
  CHECK(damaged([](Contrast& c) { c.ranked[0].layer = 4; }).find("not in layers") != std::string::npos);
  CHECK(damaged([](Contrast& c) { c.ranked[0].expert = 3; }).find("ranked[0].expert") != std::string::npos);
}
