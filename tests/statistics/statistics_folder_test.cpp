// A statistics folder: round trip, determinism, and what a damaged one says.
#include "testing.h"

#include <functional>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/statistics.h"
#include "score/second_order.h"

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

Statistics second_order_example() {
  auto statistics = given::random_second_order(3, 5, 4, 2);
  statistics.manifest.dtype = "fp64";
  statistics.manifest.sizes = {
      .checkpoint_bytes = 1'000'000, .expert_bytes = 1000, .atom_bytes = 200, .width = 4, .hidden = 16};
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

TEST_CASE("second-order statistics come back as they were written, when they are asked for", "[statistics][atoms]") {
  const given::TempFolder folder;
  const Statistics written = second_order_example();
  write_statistics(folder / "run.stats", written);
  const Statistics read = Statistics::read(folder / "run.stats", true);
  CHECK(manifest_to_json(read.manifest) == manifest_to_json(written.manifest));
  CHECK(read.manifest.sizes == written.manifest.sizes);
  CHECK(read.manifest.tasks[1].loss == written.manifest.tasks[1].loss);
  REQUIRE(read.atoms.size() == 3);
  for (std::size_t l = 0; l < 3; ++l) {
    CHECK(read.atoms[l].layer == written.atoms[l].layer);
    for (const auto member : given::kAtomFields) CHECK(read.atoms[l].*member == written.atoms[l].*member);
  }
  CHECK(Statistics::read(folder / "run.stats").atoms.empty());
  CHECK(Statistics::read(folder / "run.stats").manifest.expert_width == 4);
  CHECK(read_statistics_manifest(folder / "run.stats").expert_width == 4);
}

TEST_CASE("second-order statistics that are not there are refused before anything else is read", "[statistics][atoms]") {
  const given::TempFolder folder;
  write_statistics(folder / "run.stats", example());
  given::write_text(folder / "run.stats" / "layer-00001.safetensors", "damaged");
  CHECK_THAT(given::thrown_by([&] { Statistics::read(folder / "run.stats", true); }),
             Contains("InvalidInput") && Contains("run.stats") && Contains("--statistics second-order"));
}

TEST_CASE("equal statistics give equal bytes, and nothing is left beside them", "[statistics]") {
  const given::TempFolder folder;
  write_statistics(folder / "one.stats", second_order_example());
  write_statistics(folder / "two.stats/", second_order_example());
  int files = 0;
  for (const auto& entry : fs::directory_iterator(folder / "one.stats")) {
    CHECK(given::bytes_of(entry.path()) == given::bytes_of(folder / "two.stats" / entry.path().filename()));
    ++files;
  }
  CHECK(files == 7);
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
  const auto refused = [&](auto change, const char* why) {
    auto second_order = second_order_example();
    change(second_order);
    CHECK_THAT(given::thrown_by([&] { write_statistics(folder / "run.stats", second_order); }), Contains("InvalidInput") && Contains(why));
  };
  refused([](auto& s) { s.atoms.clear(); }, "of 0 layers for 3");  // as read without them
  refused([](auto& s) { s.manifest.expert_width = 0; s.manifest.sizes = {}; }, "of 3 layers for 0");
  refused([](auto& s) { s.atoms[1] = s.atoms[0]; }, "layer is 0");
  refused([](auto& s) { s.manifest.expert_width = 5; s.manifest.sizes = {}; }, "atomic experts is 4");
  refused([](auto& s) { s.atoms[2].tokens[7] = 1001; }, "tokens, element 7: 1001 tokens");
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
  SECTION("atoms that the manifest does not know") {
    write_atom_statistics(stats / "atoms-00001.safetensors", given::random_atoms(1, 2, 5, 4, 1));
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("atoms-00001.safetensors") && Contains("second-order"));
  }
  SECTION("a truncated layer") {
    fs::resize_file(stats / "layer-00002.safetensors", fs::file_size(stats / "layer-00002.safetensors") - 8);
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("layer-00002.safetensors"));
  }
}

TEST_CASE("a folder with missing or foreign atoms is refused", "[statistics][atoms]") {
  const given::TempFolder folder;
  const fs::path stats = folder / "run.stats";
  write_statistics(stats, second_order_example());
  const auto message = [&](bool atoms = true) { return given::thrown_by([&] { Statistics::read(stats, atoms); }); };

  SECTION("one is missing, though they are not read") {
    fs::remove(stats / "atoms-00001.safetensors");
    CHECK_THAT(message(false), Contains("InvalidInput") && Contains("atoms-00001.safetensors") && Contains("missing"));
  }
  SECTION("under another's name") {
    fs::copy(stats / "atoms-00000.safetensors", stats / "atoms-00001.safetensors", fs::copy_options::overwrite_existing);
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("atoms-00001.safetensors") && Contains("layer is 0"));
  }
  SECTION("of wider experts") {
    write_atom_statistics(stats / "atoms-00001.safetensors", given::random_atoms(1, 2, 5, 6, 1));
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("atoms-00001.safetensors") && Contains("atomic experts is 6"));
  }
  SECTION("of another number of tasks") {
    write_atom_statistics(stats / "atoms-00001.safetensors", given::random_atoms(1, 1, 5, 4, 1));
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("atoms-00001.safetensors") && Contains("tasks is 1"));
  }
  SECTION("damaged, but not read") {
    given::write_text(stats / "atoms-00001.safetensors", "damaged");
    CHECK_THAT(message(), Contains("InvalidInput") && Contains("atoms-00001.safetensors"));
    CHECK(message(false).empty());
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
    {"a loss without second-order statistics", [](auto& j) { j["tasks"][0]["loss"] = 1; }, "unknown field \"loss\""},
    {"second-order statistics without a loss", [](auto& j) { j["expert_width"] = 4; }, "tasks[0].predicted_tokens: is missing"},
};

const std::vector<BrokenManifest> kBrokenSecondOrder{
    {"no width", [](auto& j) { j["expert_width"] = 0; }, "expert_width"},
    {"huge width", [](auto& j) { j["expert_width"] = std::int64_t{1} << 40; }, "expert_width"},
    {"more predicted than counted", [](auto& j) { j["tasks"][1]["predicted_tokens"] = 99; }, "tasks[1].predicted_tokens"},
    {"negative loss", [](auto& j) { j["tasks"][1]["loss"] = -0.5; }, "tasks[1].loss"},
    {"loss as text", [](auto& j) { j["tasks"][1]["loss"] = "1"; }, "tasks[1].loss"},
    {"other width in sizes", [](auto& j) { j["sizes"]["width"] = 5; }, "sizes.width: expected the 4"},
    {"sizes incomplete", [](auto& j) { j["sizes"].erase("hidden"); }, "sizes.hidden: is missing"},
    {"sizes as number", [](auto& j) { j["sizes"] = 4; }, "sizes"},
    {"unknown size", [](auto& j) { j["sizes"]["heads"] = 4; }, "sizes: unknown field \"heads\""},
    {"experts larger than the checkpoint", [](auto& j) { j["sizes"]["expert_bytes"] = 200'001; }, "sizes.expert_bytes"},
    {"atoms larger than the expert", [](auto& j) { j["sizes"]["atom_bytes"] = 252; }, "sizes.atom_bytes"},
    {"sizes that sums leave 64 bits", [](auto& j) { j["sizes"]["checkpoint_bytes"] = std::int64_t{1} << 60; }, "sizes.checkpoint_bytes"},
};

}  // namespace

TEST_CASE("a broken manifest is refused with file and field", "[statistics]") {
  const given::TempFolder folder;
  const fs::path stats = folder / "run.stats";
  const auto check = [&](const Statistics& statistics, const BrokenManifest& broken) {
    write_statistics(stats, statistics);
    auto json = read_json_file(stats / "manifest.json");
    broken.damage(json);
    given::write_text(stats / "manifest.json", json.dump());
    CHECK_THAT(given::thrown_by([&] { Statistics::read(stats); }),
               Contains("InvalidInput") && Contains("manifest.json") && Contains(broken.field));
  };
  for (const auto& broken : kBrokenManifests) {
    DYNAMIC_SECTION(broken.name) { check(example(), broken); }
  }
  for (const auto& broken : kBrokenSecondOrder) {
    DYNAMIC_SECTION("second order: " << broken.name) { check(second_order_example(), broken); }
  }
}
