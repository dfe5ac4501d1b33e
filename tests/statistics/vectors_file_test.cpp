// Statistics on request: adding, and what a damaged or hostile file says.
#include "testing.h"

#include <limits>

#include "given.h"
#include "moetrim/error.h"
#include "moetrim/vectors.h"
#include "statistics/raw_file.h"

using namespace moetrim;
using Catch::Matchers::Contains;
using given::BrokenFile;
using given::RawFile;

namespace {

const double kNan = std::numeric_limits<double>::quiet_NaN();

/// 2 tasks, 5 experts of [4, 3], a marker, 2 samples of at most 3.
StatisticsManifest manifest() {
  StatisticsManifest out;
  out.layers = 2;
  out.experts = 5;
  out.moe_layers = {1};
  out.tasks = {{.name = "a", .digest = "1", .counted_tokens = 10}, {.name = "b", .digest = "2", .counted_tokens = 20}};
  out.vectors = StatisticsManifest::Vectors{.width = 3,
                                            .hidden = 4,
                                            .markers = {{.text = "so", .spellings = {{7}}}},
                                            .all_experts = true,
                                            .activation_samples = 3,
                                            .quantisation = true};
  return out;
}

ExpertVectors example(std::vector<double> keys = {1, 5}) {
  ExpertVectors out(1, 2, 5, *manifest().vectors);
  out.logit_gram[3] = -1;
  out.routed_output[0] = -2;
  out.input_max = std::vector<double>(out.input_max.size(), 1.5);
  out.marker_tokens = {2, 3};
  out.marker_count[1] = 2;
  out.all_tokens = {10, 20};
  out.sample_activations.resize(5 * keys.size() * 3);
  for (std::size_t i = 0; i < out.sample_activations.size(); ++i) {
    out.sample_activations[i] = static_cast<float>(keys[i / 3 % keys.size()] + 100.0 * static_cast<double>(i / 3 / keys.size()));
  }
  out.sample_key = std::move(keys);
  return out;
}

const std::vector<BrokenFile> kBrokenFiles{
    {"of another kind", [](RawFile& f) { f.metadata["moetrim_format"] = "statistics-layer-1"; }, "\"statistics-layer-1\""},
    {"another layer", [](RawFile& f) { f.metadata["moetrim_layer"] = "0"; }, "layer 0 is not among"},
    {"a tensor missing", [](RawFile& f) { f.tensors.pop_back(); }, "sample_activations is missing"},
    {"other width", [](RawFile& f) { f.reshape("activation", {2, 5, 4}); }, "activation: expected shape [2, 5, 3]"},
    {"too many samples", [](RawFile& f) { f.reshape("sample_activations", {5, 4, 3}); }, "4 samples, the manifest says 3"},
    {"negative square", [](RawFile& f) { f.set("output_square", 0, -1); }, "output_square, element 0"},
    {"not a number", [](RawFile& f) { f.set("logit_gram", 3, kNan); }, "logit_gram, element 3"},
    {"negative maximum", [](RawFile& f) { f.set("input_max", 5, -1); }, "input_max, element 5"},
    {"more marked than there are", [](RawFile& f) { f.set("marker_tokens", 0, 11); }, "marker_tokens: 11 tokens, of 10"},
    {"more routed than marked", [](RawFile& f) { f.set("marker_count", 1, 3); }, "marker_count: 3 tokens, of 2"},
    {"more than all tokens", [](RawFile& f) { f.set("all_tokens", 1, 21); }, "all_tokens: 21 tokens, of 20"},
    {"keys out of order", [](RawFile& f) { f.set("sample_key", 0, 6); }, "sample_key, element 1"},
};

}  // namespace

TEST_CASE("a broken file of vectors is refused with file and tensor", "[statistics][vectors]") {
  const given::TempFolder folder;
  const auto path = folder / vector_file_name(1);
  write_vectors_file(path, example());
  const ExpertVectors read = read_vectors_file(path, manifest());
  CHECK(read.sample_activations == example().sample_activations);
  CHECK(read.routed_output == example().routed_output);
  for (const auto& broken : kBrokenFiles) {
    DYNAMIC_SECTION(broken.name) {
      RawFile raw = RawFile::read(path);
      broken.damage(raw);
      raw.write(folder / "broken.safetensors");
      CHECK_THAT(given::thrown_by([&] { read_vectors_file(folder / "broken.safetensors", manifest()); }),
                 Contains("InvalidInput") && Contains("broken.safetensors") && Contains(broken.expected));
    }
  }
}

TEST_CASE("vectors add up, maxima do not, and the samples with the smallest keys stay", "[statistics][vectors]") {
  ExpertVectors sum = example();
  sum.add(example({2, 3}));
  CHECK(sum.logit_gram[3] == -2);
  CHECK(sum.input_max[7] == 1.5);
  CHECK(sum.all_tokens == std::vector<double>{20, 40});
  CHECK(sum.sample_key == std::vector<double>{1, 2, 3});
  CHECK(sum.sample_activations[0] == 1);
  CHECK(sum.sample_activations[3 * 3] == 101);   // expert 1: rows of its own
  CHECK(sum.sample_activations[3 * 3 + 6] == 103);

  ExpertVectors other = example();
  other.weight_max[2] = 1;
  CHECK_THAT(given::thrown_by([&] { sum.add(other); }), Contains("different checkpoints"));
  CHECK_THROWS_AS(sum.add_task(0, ExpertVectors(0, 2, 5, *manifest().vectors), 0), InvalidInput);
}

TEST_CASE("what the manifest says of vectors is read back, and refused when it is damaged", "[statistics][vectors]") {
  StatisticsManifest written = given::manifest(2, 5, 2);
  written.vectors = manifest().vectors;
  const auto json = manifest_to_json(written);
  CHECK(manifest_from_json(json, "manifest.json").vectors == written.vectors);
  const auto refusal = [&](const char* pointer, const nlohmann::ordered_json& value) {
    auto broken = json;
    broken[nlohmann::ordered_json::json_pointer(pointer)] = value;
    return given::thrown_by([&] { manifest_from_json(broken, "manifest.json"); });
  };
  CHECK_THAT(refusal("/vectors/width", 0), Contains("manifest.json: vectors.width"));
  CHECK_THAT(refusal("/vectors/widths", 4), Contains("did you mean \"width\"?"));
  CHECK_THAT(refusal("/vectors/markers/0/spellings/0", {1, -1}), Contains("vectors.markers[0].spellings[0]: expected whole numbers"));
  CHECK_THAT(refusal("/vectors/markers/0/spellings/0", nlohmann::ordered_json::array()), Contains("expected an array of token ids"));
  CHECK_THAT(refusal("/vectors/all_experts/activation_samples", -1), Contains("vectors.all_experts.activation_samples"));
}
