// Sums of squares of linear inputs: adding, and what a damaged or hostile file says.
#include "testing.h"

#include <limits>

#include "given.h"
#include "moetrim/error.h"
#include "moetrim/input_statistics.h"
#include "statistics/raw_file.h"

using namespace moetrim;
using Catch::Matchers::Contains;
using given::BrokenFile;
using given::RawFile;

namespace {

const double kNan = std::numeric_limits<double>::quiet_NaN();

/// 2 tasks; layer 0 is dense, layer 1 has 3 experts.
StatisticsManifest manifest() {
  StatisticsManifest out;
  out.layers = 2;
  out.experts = 3;
  out.moe_layers = {1};
  out.tasks = {{.name = "a", .digest = "1", .tokens = 10}, {.name = "b", .digest = "2", .tokens = 20}};
  announce_inputs(out);
  return out;
}

LinearInputs example(int layer = 1) {
  LinearInputs out = empty_inputs(manifest(), layer);
  out.tokens = {10, 20};
  out.of(LinearInput::attention) = {1, 2, 3, 4};
  if (layer == 0) return out;
  out.routed = {1, 2, 3, 4, 5, 6};
  out.of(LinearInput::expert) = std::vector<double>(12, 0.5);
  out.of(LinearInput::expert_down) = {1, 2, 3, 4, 5, 6};
  return out;
}

const std::vector<BrokenFile> kBrokenFiles{
    {"of another kind", [](RawFile& f) { f.metadata["moetrim_format"] = "statistics-layer-1"; }, "\"statistics-layer-1\""},
    {"a layer too many", [](RawFile& f) { f.metadata["moetrim_layer"] = "2"; }, "layer 2 is not among"},
    {"of a dense layer", [](RawFile& f) { f.metadata["moetrim_layer"] = "0"; }, "the layer has no experts"},
    {"an unknown input", [](RawFile& f) { f.at("attention").spec.name = "intention"; }, "unknown tensor \"intention\""},
    {"counts missing", [](RawFile& f) { f.tensors.erase(f.tensors.begin()); }, "tokens is missing"},
    {"other tasks", [](RawFile& f) { f.reshape("attention", {1, 4}); }, "attention: expected shape [2, 4], got [1, 4]"},
    {"other experts", [](RawFile& f) { f.reshape("expert", {2, 2, 3}); }, "expert: expected shape [2, 3, 3]"},
    {"no width", [](RawFile& f) { f.reshape("attention", {2, 0}); }, "attention: expected [tasks, width]"},
    {"negative", [](RawFile& f) { f.set("expert", 3, -1); }, "expert, element 3"},
    {"not a number", [](RawFile& f) { f.set("attention", 1, kNan); }, "attention, element 1"},
    {"more tokens than ran", [](RawFile& f) { f.set("tokens", 0, 11); }, "at most 10 tokens, got 11"},
    {"more routed than ran", [](RawFile& f) { f.set("routed", 1, 11); }, "routed: expected a whole number of at most 10"},
    {"half a token", [](RawFile& f) { f.set("routed", 1, 0.5); }, "routed: expected a whole number"},
};

}  // namespace

TEST_CASE("a broken file of inputs is refused with file and tensor", "[statistics][inputs]") {
  const given::TempFolder folder;
  const auto path = folder / input_file_name(1);
  write_input_statistics(path, example());
  const LinearInputs read = read_input_statistics(path, manifest());
  CHECK(read.squares == example().squares);
  CHECK(read.routed == example().routed);
  for (const auto& broken : kBrokenFiles) {
    DYNAMIC_SECTION(broken.name) {
      RawFile raw = RawFile::read(path);
      broken.damage(raw);
      raw.write(folder / "broken.safetensors");
      CHECK_THAT(given::thrown_by([&] { read_input_statistics(folder / "broken.safetensors", manifest()); }),
                 Contains("InvalidInput") && Contains("broken.safetensors") && Contains(broken.expected));
    }
  }
  StatisticsManifest without = manifest();
  forget_inputs(without);
  CHECK_THAT(given::thrown_by([&] { read_input_statistics(folder.path(), without, 1); }), Contains("--statistics inputs"));
}

TEST_CASE("inputs of parts find the tasks of the sum", "[statistics][inputs]") {
  StatisticsManifest one = manifest(), other = manifest();
  other.tasks = {one.tasks[1]};
  const auto read = [&](std::size_t part, int layer) {
    LinearInputs inputs = example(layer);
    if (part == 0) return inputs;
    LinearInputs second = empty_inputs(other, layer);
    add_inputs(second, 0, inputs, 1);
    return second;
  };
  const LinearInputs sum = merge_inputs(one, {.manifests = {one, other}, .read = read}, 1);
  CHECK(sum.tokens == std::vector<double>{10, 40});
  CHECK(sum.of(LinearInput::attention) == std::vector<double>{1, 2, 6, 8});
  CHECK(sum.of(LinearInput::expert_down) == std::vector<double>{1, 2, 3, 8, 10, 12});
  CHECK(sum.of(LinearInput::head).empty());

  LinearInputs wider = example();
  wider.of(LinearInput::attention) = std::vector<double>(6, 1.0);
  LinearInputs to = example();
  CHECK_THAT(given::thrown_by([&] { add_inputs(to, 0, wider, 0); }), Contains("attention of 3 values a task to those of 2"));
  CHECK_THROWS_AS(add_inputs(to, 0, example(0), 0), InvalidInput);
}
