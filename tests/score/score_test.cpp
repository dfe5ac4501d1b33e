// Scoring a run: task mixes, the random control, where `official` is refused, and the scores file.
#include "testing.h"

#include <cstring>
#include <limits>
#include <set>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/score.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

Scores scored(const Statistics& statistics, const char* method, const std::vector<std::pair<std::string, double>>& weights = {},
              Variant variant = Variant::executed, std::uint64_t seed = 0) {
  return score(statistics, find_scoring_method(method), {.variant = variant, .seed = seed}, weights);
}

std::string official_refusal(const Statistics& statistics, const char* method) {
  return given::thrown_by([&] { scored(statistics, method, {}, Variant::official); });
}

}  // namespace

TEST_CASE("a mix sums to its weights per layer", "[score]") {
  const auto statistics = given::random_statistics(2, 7, 2, 3);
  for (const auto& values : scored(statistics, "reap", {{"a", 1.0}, {"c", 2.5}}).values) {
    double sum = 0;
    for (const double value : values) sum += value;
    CHECK(sum == testing::Approx(3.5));
  }
}

TEST_CASE("a task without tokens adds nothing to a mix", "[score]") {
  auto layer = given::random_layer(0, 1, 5, 2, 3);
  LayerStatistics two(0, 2, 5);
  two.add_task(0, layer, 0);
  const auto statistics = given::statistics(given::manifest(1, 5, 2, 2), {two});
  CHECK(scored(statistics, "ean").values == scored(statistics, "ean", {{"a", 1.0}, {"b", 5.0}}).values);
}

TEST_CASE("negative scores are normalised by their magnitudes", "[score]") {
  LayerStatistics layer(0, 2, 2);
  layer.token_count[0] = layer.token_count[kSlices] = 1;
  layer.at(Stat::tcess_logit_sum, 0, 0, 0) = 1;
  layer.at(Stat::tcess_logit_sum, 0, 0, 1) = -1;  // the plain sum would be zero
  layer.at(Stat::tcess_logit_sum, 1, 0, 0) = 3;
  layer.at(Stat::tcess_logit_sum, 1, 0, 1) = 1;
  const auto statistics = given::statistics(given::manifest(1, 2, 1, 2), {layer});
  CHECK(scored(statistics, "tcess", {}, Variant::official).values[0] == std::vector<double>{0.5 + 0.75, -0.5 + 0.25});
}

TEST_CASE("bad weights and unknown names are refused with the known ones", "[score]") {
  const auto statistics = given::random_statistics(1, 5, 2, 2);
  CHECK_THAT(given::thrown_by([&] { scored(statistics, "reap", {{"A", 1.0}}); }), Contains("InvalidInput") && Contains("a, b"));
  for (const double weight : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THAT(given::thrown_by([&] { scored(statistics, "reap", {{"a", weight}}); }),
               Contains("UsageError") && Contains("\"a\""));
  }
  CHECK_THAT(given::thrown_by([&] { scored(statistics, "reap", {{"a", 1.0}, {"a", 1.0}}); }), Contains("UsageError"));
  CHECK_THAT(given::thrown_by([] { find_scoring_method("easyep"); }),
             Contains("UsageError") && Contains("did you mean \"easy-ep\"?") && Contains("soft-frequency"));
  CHECK(variant_from_name("official") == Variant::official);
  CHECK_THAT(given::thrown_by([] { variant_from_name("paper"); }), Contains("UsageError") && Contains("executed"));
}

TEST_CASE("sums too large to add are refused with layer and expert", "[score]") {
  auto statistics = given::random_statistics(1, 5, 2);
  for (int slice = 0; slice < kSlices; ++slice) {
    statistics.layers[0].at(Stat::norm_sum, 0, slice, 3) = std::numeric_limits<double>::max();
  }
  CHECK_THAT(given::thrown_by([&] { scored(statistics, "ean"); }), Contains("InvalidInput") && Contains("layer 0, expert 3"));
}

TEST_CASE("random depends on seed, layer and expert only", "[score]") {
  const auto statistics = given::random_statistics(3, 64, 2);
  const auto scores = scored(statistics, "random", {}, Variant::executed, 7);
  CHECK(scores.values == scored(given::random_statistics(3, 64, 2, 1, 99), "random", {}, Variant::executed, 7).values);
  CHECK(scores.values != scored(statistics, "random", {}, Variant::executed, 8).values);
  std::set<double> all;
  double sum = 0;
  for (const auto& layer : scores.values) {
    for (const double value : layer) {
      CHECK((value >= 0 && value < 1));
      all.insert(value);
      sum += value;
    }
  }
  CHECK(all.size() == 3 * 64);
  CHECK(sum / (3 * 64) == testing::Approx(0.5).margin(0.06));  // three standard errors
}

TEST_CASE("random numbers stay what they were", "[score]") {
  // SplitMix64's published first output for state 0 is 0xe220a8397b1dcdaf; the values here follow from three such steps.
  const auto scores = scored(given::random_statistics(1, 2, 1), "random");
  CHECK(scores.values[0][0] == testing::Approx(0.13870941014555427).epsilon(1e-15));
  CHECK(scores.values[0][1] == testing::Approx(0.2582654469187293).epsilon(1e-15));
}

TEST_CASE("official equals executed where the published routing is what ran", "[score]") {
  const auto statistics = given::random_statistics(2, 7, 2);
  for (const char* method : {"frequency", "soft-frequency", "ean", "reap", "easy-ep", "random"}) {
    CAPTURE(method);
    const auto official = scored(statistics, method, {}, Variant::official);
    CHECK(official.values == scored(statistics, method).values);
    CHECK(official.variant == "official");
  }
}

TEST_CASE("official is refused where the published routing is not what ran", "[score]") {
  auto statistics = given::random_statistics(2, 7, 2);
  SECTION("a selection bias or groups") {
    statistics.manifest.router_selects_by_logit = false;
    for (const char* method : {"frequency", "soft-frequency", "ean", "reap"}) {
      CHECK_THAT(official_refusal(statistics, method),
                 Contains("InvalidInput") && Contains(method) && Contains("never computed") && Contains("executed"));
    }
    CHECK(official_refusal(statistics, "easy-ep").empty());
    CHECK(official_refusal(statistics, "tcess").empty());
  }
  SECTION("sigmoid gates: the same experts, other weights") {
    statistics.manifest.router = "sigmoid";
    for (const char* method : {"soft-frequency", "reap"}) {
      CHECK_THAT(official_refusal(statistics, method), Contains("InvalidInput") && Contains(method) && Contains("sigmoid"));
    }
    CHECK(official_refusal(statistics, "frequency").empty());
    CHECK(official_refusal(statistics, "ean").empty());
  }
  SECTION("no marks on raw logits") {
    statistics.manifest.tcess_top_k = 0;
    CHECK_THAT(official_refusal(statistics, "tcess"), Contains("InvalidInput") && Contains("tcess_top_k"));
  }
}

TEST_CASE("the scores file holds scores and absolute layer ids", "[score]") {
  const given::TempFolder folder;
  const auto statistics = given::statistics(
      given::manifest(6, 5, 2), {given::random_layer(3, 1, 5, 2, 1), given::random_layer(5, 1, 5, 2, 2)});
  const auto scores = scored(statistics, "reap");
  write_scores(folder / "scores.safetensors", scores);
  const auto file = SafetensorsFile::open(folder / "scores.safetensors");
  CHECK(file.metadata().at("method") == "reap");
  CHECK(file.metadata().at("variant") == "executed");
  REQUIRE(file.find("scores"));
  CHECK(file.find("scores")->shape == std::vector<std::int64_t>{2, 5});
  double last = 0;
  const auto bytes = file.read(*file.find("scores"));
  std::memcpy(&last, bytes.data() + 9 * sizeof last, sizeof last);
  CHECK(last == scores.values[1][4]);
  std::int64_t ids[2] = {};
  const auto id_bytes = file.read(*file.find("layers"));
  REQUIRE(id_bytes.size() == sizeof ids);
  std::memcpy(ids, id_bytes.data(), sizeof ids);
  CHECK((ids[0] == 3 && ids[1] == 5));

  const auto json = scores_to_json(scores);
  CHECK(json["method"] == "reap");
  CHECK(json["layers"][1]["layer"] == 5);
  CHECK(json["layers"][1]["scores"] == scores.values[1]);
  CHECK(json["source"]["tasks"][0]["name"] == "a");
}
