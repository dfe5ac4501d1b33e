// Second-order scores on the worked example of HEAPr's method card, by hand; their mix, files and refusals.
#include "testing.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "moetrim/checkpoint.h"
#include "moetrim/plan.h"
#include "moetrim/score.h"
#include "score/second_order.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

using Values = std::vector<double>;

/// 3 experts of 2 atoms; 2 predicted tokens, so that the loss is a mean and its square divided by 4.
Statistics example() {
  LayerStatistics layer(0, 1, 3);
  layer.token_count[0] = 2;
  return given::with_atoms(given::statistics(given::manifest(1, 3, 1), {layer}), {given::heapr_example()});
}

Scores scored(const Statistics& statistics, const char* method, const ScoreOptions& options = {},
              const std::vector<std::pair<std::string, double>>& weights = {}) {
  return score(statistics, find_scoring_method(method), options, weights);
}

void check(const char* method, const Values& expected, const ScoreOptions& options = {}) {
  CAPTURE(method);
  const auto scores = scored(example(), method, options);
  REQUIRE(scores.values[0].size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(scores.values[0][i] == testing::Approx(expected[i]).epsilon(1e-14));
}

}  // namespace

TEST_CASE("HEAPr's worked example: every score over atoms", "[score][atoms]") {
  check("heapr", {12.5 / 4, 4. / 4, 4. / 4, 1. / 4, 0, 0});
  check("heapr-sum", {25. / 4, 8. / 4, 4. / 4, 1. / 4, 0, 0});
  check("heapr-joint", {37. / 4, 0, 4. / 4, 1. / 4, 0, 0});
  check("magnitude", {4, 2, 4, 3, 2, 5});
  check("wanda", {std::sqrt(10. * 2), std::sqrt(4. * 1), std::sqrt(4. * 1), std::sqrt(1. * 5), 0, 0});
}

TEST_CASE("HEAPr's worked example: every score over experts", "[score][atoms]") {
  check("heapr-expert", {16.5 / 4, 5. / 4, 0});
  check("heapr-sum-expert", {33. / 4, 5. / 4, 0});
  check("heapr-joint-expert", {37. / 4, 5. / 4, 0});
  check("taylor", {7. / 2, 3. / 2, 0});          // 1 + 6, 3
  check("fisher", {37. / 4, 9. / 4, 0});         // 1 + 36, 9
}

TEST_CASE("taylor takes the magnitude of a sum in which tokens cancel", "[score][atoms]") {
  auto statistics = example();
  statistics.atoms[0].taylor[1] = -5;  // slice 0, expert 1
  CHECK(scored(statistics, "taylor").values[0] == Values{3.5, 1, 0});
}

TEST_CASE("HEAPr official: a never-routed expert goes first or stays whole, by library", "[score][atoms]") {
  const double largest = std::numeric_limits<double>::max();
  check("heapr", {3.125, 1, 1, .25, -1, -1}, {.variant = Variant::official});
  check("heapr", {3.125, 1, 1, .25, -1, -1}, {.variant = Variant::official, .library = "4.56"});
  check("heapr", {3.125, 1, 1, .25, largest, largest}, {.variant = Variant::official, .library = "4.51"});
}

TEST_CASE("a library version that nothing depends on is refused", "[score][atoms]") {
  const auto refused = [](const char* method, const ScoreOptions& options, const char* why) {
    CHECK_THAT(given::thrown_by([&] { scored(example(), method, options); }), Contains("UsageError") && Contains(why));
  };
  refused("heapr", {.library = "4.51"}, "leave it out");
  refused("heapr-sum", {.variant = Variant::official, .library = "4.51"}, "leave it out");
  refused("reap", {.variant = Variant::official, .library = "4.51"}, "leave it out");
  refused("heapr", {.variant = Variant::official, .library = "4.57"}, "expected 4.56 or 4.51");
  const auto two = given::random_second_order(1, 3, 2, 2);
  CHECK_THAT(given::thrown_by([&] { scored(two, "heapr", {.variant = Variant::official}); }),
             Contains("UsageError") && Contains("--task"));
  CHECK(given::thrown_by([&] { scored(two, "heapr", {.variant = Variant::official}, {{"b", 2.0}}); }).empty());
}

TEST_CASE("a mix over atoms is normalised over all layers, so that one ranking survives", "[score][atoms]") {
  const auto statistics = given::random_second_order(3, 4, 2, 2);
  const auto a = scored(statistics, "heapr-sum", {}, {{"a", 1.0}}).values;
  const auto b = scored(statistics, "heapr-sum", {}, {{"b", 1.0}}).values;
  const auto mix = scored(statistics, "heapr-sum", {}, {{"a", 1.0}, {"b", 2.5}});
  double sum_a = 0;
  double sum_b = 0;
  for (std::size_t l = 0; l < 3; ++l) {
    for (std::size_t i = 0; i < 8; ++i) {
      sum_a += a[l][i];
      sum_b += b[l][i];
    }
  }
  for (std::size_t l = 0; l < 3; ++l) {
    for (std::size_t i = 0; i < 8; ++i) CHECK(mix.values[l][i] == testing::Approx(a[l][i] / sum_a + 2.5 * b[l][i] / sum_b));
  }
  const auto experts = scored(statistics, "fisher", {}, {{"a", 1.0}, {"b", 2.5}});
  for (const auto& layer : experts.values) {  // experts per layer, as everywhere
    CHECK(std::accumulate(layer.begin(), layer.end(), 0.0) == testing::Approx(3.5));
  }
}

TEST_CASE("without predicted tokens there is no loss and every second-order score is zero", "[score][atoms]") {
  auto statistics = example();
  statistics.manifest.tasks[0].predicted_tokens = 0;
  for (const char* method : {"heapr", "heapr-sum", "heapr-joint", "heapr-expert", "taylor", "fisher"}) {
    CAPTURE(method);
    const Values scores = scored(statistics, method).values[0];
    CHECK(scores == Values(scores.size(), 0.0));
  }
}

TEST_CASE("second-order scores need second-order statistics", "[score][atoms]") {
  const auto statistics = given::random_statistics(2, 5, 2);
  for (const ScoringMethod* method : scoring_methods()) {
    CAPTURE(method->name);
    const std::string refusal = given::thrown_by([&] { score(statistics, *method, {}); });
    if (!method->second_order) CHECK(refusal.empty());
    if (method->second_order) CHECK_THAT(refusal, Contains("InvalidInput") && Contains("--statistics second-order"));
  }
}

TEST_CASE("sums of atoms too large to multiply are refused with layer, expert and atom", "[score][atoms]") {
  auto statistics = example();
  statistics.atoms[0].activation[3] = statistics.atoms[0].gradient[3] = 1e300;
  CHECK_THAT(given::thrown_by([&] { scored(statistics, "heapr"); }),
             Contains("InvalidInput") && Contains("layer 0, expert 1, atomic expert 1"));
}

TEST_CASE("random atoms depend on seed, layer, expert and atom only", "[score][atoms]") {
  const auto scores = scored(given::random_second_order(2, 4, 16), "random-atoms", {.seed = 7});
  CHECK(scores.values == scored(given::random_second_order(2, 4, 16, 1, 99), "random-atoms", {.seed = 7}).values);
  CHECK(scores.values != scored(given::random_second_order(2, 4, 16), "random-atoms", {.seed = 8}).values);
  std::vector<double> all = scores.values[0];
  all.insert(all.end(), scores.values[1].begin(), scores.values[1].end());
  std::sort(all.begin(), all.end());
  CHECK(std::adjacent_find(all.begin(), all.end()) == all.end());
  CHECK((all.front() >= 0 && all.back() < 1));
}

TEST_CASE("scores of atoms as file and JSON: one matrix a layer", "[score][atoms]") {
  const given::TempFolder folder;
  auto statistics = given::random_second_order(2, 4, 3);
  statistics.manifest.layers = 6;
  statistics.manifest.moe_layers = {2, 5};
  const auto scores = scored(statistics, "heapr");
  CHECK((scores.grain == Grain::atom && scores.width == 3));
  write_scores(folder / "scores.safetensors", scores);
  const auto file = SafetensorsFile::open(folder / "scores.safetensors");
  REQUIRE(file.find("scores.5"));
  CHECK(file.find("scores.5")->shape == std::vector<std::int64_t>{4, 3});
  double value = 0;
  std::memcpy(&value, file.read(*file.find("scores.5")).data() + 7 * sizeof value, sizeof value);
  CHECK(value == scores.values[1][7]);
  CHECK_FALSE(file.find("scores"));

  const auto json = scores_to_json(scores);
  CHECK(json["grain"] == "atom");
  CHECK(json["layers"][1]["layer"] == 5);
  CHECK(json["layers"][1]["scores"].size() == 4);
  CHECK(json["layers"][1]["scores"][2][1] == scores.values[1][7]);
  CHECK_FALSE(scores_to_json(scored(statistics, "reap")).contains("grain"));
}
