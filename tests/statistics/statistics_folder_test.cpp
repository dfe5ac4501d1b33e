// A statistics folder: round trip, determinism, and what a damaged one says.
#include "testing.h"

#include <functional>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/statistics.h"

using namespace moetrim;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

Statistics example() {
  auto statistics = given::random_statistics(3, 5, 2, 2);
  statistics.layers[0].transitions[7] = 3;
  statistics.layers[1].at(Stat::tcess_logit_sum, 1, 4, 2) = -1.25;
  statistics.manifest.settings = {{"seed", 7}};
  return statistics;
}

}  // namespace

TEST_CASE("statistics come back as they were written", "[statistics]") {
  const given::TempFolder folder;
  const Statistics written = example();
  write_statistics(folder / "run.stats", written);
  const Statistics read = Statistics::read(folder / "run.stats");
  CHECK(manifest_to_json(read.manifest) == manifest_to_json(written.manifest));
  REQUIRE(read.layers.size() == 3);
  for (std::size_t l = 0; l < 3; ++l) {
    CHECK(read.layers[l].layer == written.layers[l].layer);
    CHECK(read.layers[l].token_count == written.layers[l].token_count);
    CHECK(read.layers[l].coactivation == written.layers[l].coactivation);
    CHECK(read.layers[l].transitions == written.layers[l].transitions);
    for (int i = 0; i < kStatCount; ++i) {
      const auto a = read.layers[l].values(static_cast<Stat>(i));
      const auto b = written.layers[l].values(static_cast<Stat>(i));
      CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
    }
  }
  CHECK(read.task("b") == 1);
  CHECK_THAT(given::thrown_by([&] { read.task("c"); }), Contains("InvalidInput") && Contains("\"c\"") && Contains("a, b"));
}

TEST_CASE("equal statistics give equal bytes, and nothing is left beside them", "[statistics]") {
  const given::TempFolder folder;
  write_statistics(folder / "one.stats", example());
  write_statistics(folder / "two.stats/", example());
  int files = 0;
  for (const auto& entry : fs::directory_iterator(folder / "one.stats")) {
    CHECK(given::bytes_of(entry.path()) == given::bytes_of(folder / "two.stats" / entry.path().filename()));
    ++files;
  }
  CHECK(files == 4);
  CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()) == 2);
}

TEST_CASE("an existing target is refused and left alone", "[statistics]") {
  const given::TempFolder folder;
  fs::create_directory(folder / "run.stats");
  CHECK_THAT(given::thrown_by([&] { write_statistics(folder / "run.stats", example()); }),
             Contains("InvalidInput") && Contains("run.stats") && Contains("exists"));
  CHECK(fs::is_empty(folder / "run.stats"));
}

TEST_CASE("statistics that do not fit their manifest are not written", "[statistics]") {
  const given::TempFolder folder;
  auto statistics = example();
  statistics.layers.pop_back();
  CHECK_THROWS_AS(write_statistics(folder / "run.stats", statistics), InvalidInput);
  statistics = example();
  statistics.manifest.tasks[1].counted_tokens -= 1;
  CHECK_THAT(given::thrown_by([&] { write_statistics(folder / "run.stats", statistics); }), Contains("token_count of task b"));
  statistics = example();
  statistics.manifest.family.clear();
  CHECK_THAT(given::thrown_by([&] { write_statistics(folder / "run.stats", statistics); }), Contains("family"));
  CHECK(fs::is_empty(folder.path()));
}

TEST_CASE("a folder with missing or foreign files is refused", "[statistics]") {
  const given::TempFolder folder;
  const fs::path stats = folder / "run.stats";
  write_statistics(stats, example());
  const auto message = [&] { return given::thrown_by([&] { Statistics::read(stats); }); };

  SECTION("no folder") {
    fs::remove_all(stats);
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("run.stats"));
  }
  SECTION("no manifest") {
    fs::remove(stats / "manifest.json");
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("manifest.json"));
  }
  SECTION("a layer is missing") {
    fs::remove(stats / "layer-00001.safetensors");
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("layer-00001.safetensors") && Contains("missing"));
  }
  SECTION("a layer too many") {
    fs::copy(stats / "layer-00001.safetensors", stats / "layer-00009.safetensors");
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("layer-00009.safetensors"));
  }
  SECTION("an unfinished layer") {
    given::write_text(stats / "layer-00003.safetensors.partial", "");
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("layer-00003.safetensors.partial"));
  }
  SECTION("a layer under another's name") {
    fs::copy(stats / "layer-00000.safetensors", stats / "layer-00001.safetensors", fs::copy_options::overwrite_existing);
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("layer-00001.safetensors") && Contains("layer is 0"));
  }
  SECTION("a layer of a run with more tokens") {
    auto other = example();
    other.layers[1].token_count[0] += 1;
    write_layer_statistics(stats / "layer-00001.safetensors", other.layers[1]);
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("layer-00001.safetensors") && Contains("token_count of task a"));
  }
  SECTION("a layer with other experts") {
    write_layer_statistics(stats / "layer-00001.safetensors", LayerStatistics(1, 2, 7));
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("layer-00001.safetensors") && Contains("experts"));
  }
  SECTION("a truncated layer") {
    fs::resize_file(stats / "layer-00002.safetensors", fs::file_size(stats / "layer-00002.safetensors") - 8);
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("layer-00002.safetensors"));
  }
}

namespace {

struct BrokenManifest {
  const char* name;
  std::function<void(nlohmann::ordered_json&)> damage;
  const char* field;
};

const std::vector<BrokenManifest> kBrokenManifests{
    {"other format", [](auto& j) { j["format"] = "moetrim-plan"; }, "format"},
    {"later version", [](auto& j) { j["version"] = 2; }, "version"},
    {"no version", [](auto& j) { j.erase("version"); }, "version"},
    {"misspelt field", [](auto& j) { j["tcess_topk"] = 1; }, "did you mean \"tcess_top_k\"?"},
    {"unknown router", [](auto& j) { j["router"] = "softmx"; }, "did you mean \"softmax\"?"},
    {"flag as text", [](auto& j) { j["gates_normalised"] = "yes"; }, "gates_normalised"},
    {"no experts", [](auto& j) { j["experts"] = 0; }, "experts"},
    {"more active than there are", [](auto& j) { j["experts_per_token"] = 6; }, "experts_per_token"},
    {"fraction of an expert", [](auto& j) { j["experts"] = 5.5; }, "experts"},
    {"huge number", [](auto& j) { j["layers"] = 18446744073709551615U; }, "layers"},
    {"layer out of range", [](auto& j) { j["moe_layers"] = {0, 1, 3}; }, "moe_layers[2]"},
    {"doubled layer", [](auto& j) { j["moe_layers"] = {0, 1, 1}; }, "moe_layers[2]"},
    {"no MoE layer", [](auto& j) { j["moe_layers"] = nlohmann::ordered_json::array(); }, "moe_layers"},
    {"layers as text", [](auto& j) { j["moe_layers"] = "0-2"; }, "moe_layers"},
    {"no task", [](auto& j) { j["tasks"] = nlohmann::ordered_json::array(); }, "tasks"},
    {"doubled task", [](auto& j) { j["tasks"][1]["name"] = "a"; }, "tasks[1]"},
    {"task as number", [](auto& j) { j["tasks"][1] = 4; }, "tasks[1]"},
    {"task with unknown field", [](auto& j) { j["tasks"][1]["token"] = 4; }, "tasks[1]: unknown field \"token\""},
    {"more counted than run", [](auto& j) { j["tasks"][0]["counted_tokens"] = 99; }, "tasks[0].counted_tokens"},
    {"negative tokens", [](auto& j) { j["tasks"][0]["tokens"] = -1; }, "tasks[0].tokens"},
    {"unknown dtype", [](auto& j) { j["dtype"] = "fp16"; }, "dtype"},
    {"threshold out of range", [](auto& j) { j["tcess_threshold"] = 1.5; }, "tcess_threshold"},
    {"settings as list", [](auto& j) { j["settings"] = {1}; }, "settings"},
    {"no object", [](auto& j) { j = nlohmann::ordered_json::array(); }, "expected an object"},
};

}  // namespace

TEST_CASE("a broken manifest is refused with file and field", "[statistics]") {
  const given::TempFolder folder;
  const fs::path stats = folder / "run.stats";
  write_statistics(stats, example());
  for (const auto& broken : kBrokenManifests) {
    DYNAMIC_SECTION(broken.name) {
      auto json = read_json_file(stats / "manifest.json");
      broken.damage(json);
      given::write_text(stats / "manifest.json", json.dump());
      CHECK_THAT(given::thrown_by([&] { Statistics::read(stats); }),
                 Contains("InvalidInput") && Contains("manifest.json") && Contains(broken.field));
    }
  }
}
