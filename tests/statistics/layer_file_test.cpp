// A layer's safetensors file: what a damaged or hostile one says.
#include "testing.h"

#include <limits>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/statistics.h"
#include "statistics/raw_file.h"

using namespace moetrim;
using given::BrokenFile;
using given::RawFile;
using Catch::Matchers::Contains;

namespace {

const double kNan = std::numeric_limits<double>::quiet_NaN();
const double kInfinity = std::numeric_limits<double>::infinity();

// The file has 2 tasks and 5 experts.
const std::vector<BrokenFile> kBrokenFiles{
    {"not statistics", [](RawFile& f) { f.metadata.clear(); }, "moetrim_format"},
    {"later version", [](RawFile& f) { f.metadata["moetrim_format"] = "statistics-layer-2"; }, "statistics-layer-2"},
    {"no layer id", [](RawFile& f) { f.metadata.erase("moetrim_layer"); }, "moetrim_layer"},
    {"negative layer id", [](RawFile& f) { f.metadata["moetrim_layer"] = "-1"; }, "moetrim_layer"},
    {"layer id with a tail", [](RawFile& f) { f.metadata["moetrim_layer"] = "1x"; }, "moetrim_layer"},
    {"first tensor missing", [](RawFile& f) { f.at("routed_count").spec.name = "routed"; }, "routed_count"},
    {"a tensor missing", [](RawFile& f) { f.tensors.pop_back(); }, "missing"},
    {"misspelt tensor", [](RawFile& f) { f.tensors.push_back({{"gate_sums", Dtype::f64, {0}}, {}}); },
     "did you mean \"gate_sum\"?"},
    {"single precision",
     [](RawFile& f) {
       f.at("norm_sum").spec.dtype = Dtype::f32;
       f.reshape("norm_sum", {2, 8, 5});
     },
     "norm_sum: expected F64"},
    {"seven slices", [](RawFile& f) { f.reshape("routed_count", {2, 7, 5}); }, "routed_count"},
    {"no experts", [](RawFile& f) { f.reshape("routed_count", {2, 8, 0}); }, "routed_count"},
    {"other expert count in one tensor", [](RawFile& f) { f.reshape("gate_sum", {2, 8, 7}); }, "gate_sum"},
    {"flat co-activation", [](RawFile& f) { f.reshape("coactivation", {50}); }, "coactivation"},
    {"other task count in one tensor", [](RawFile& f) { f.reshape("token_count", {1, 8}); }, "token_count"},
    {"not a number", [](RawFile& f) { f.set("easy_ep_sum", 3, kNan); }, "easy_ep_sum, element 3"},
    {"infinite", [](RawFile& f) { f.set("max_abs", 0, kInfinity); }, "max_abs, element 0"},
    {"infinite logit", [](RawFile& f) { f.set("tcess_logit_sum", 0, -kInfinity); }, "tcess_logit_sum, element 0"},
    {"negative count", [](RawFile& f) { f.set("routed_count", 79, -1); }, "routed_count, element 79"},
    {"negative pairs", [](RawFile& f) { f.set("transitions", 49, -1); }, "transitions, element 49"},
    {"negative tokens", [](RawFile& f) { f.set("token_count", 15, -1); }, "token_count, element 15"},
    {"more routed than counted", [](RawFile& f) { f.set("routed_count", 6, 99); }, "routed_count, element 6"},
};

}  // namespace

TEST_CASE("a broken layer file is refused with file and tensor", "[statistics]") {
  const given::TempFolder folder;
  const auto path = folder / layer_file_name(1);
  write_layer_statistics(path, given::random_layer(1, 2, 5, 2, 1));
  for (const auto& broken : kBrokenFiles) {
    DYNAMIC_SECTION(broken.name) {
      RawFile raw = RawFile::read(path);
      broken.damage(raw);
      raw.write(folder / "broken.safetensors");
      CHECK_THAT(given::thrown_by([&] { read_layer_statistics(folder / "broken.safetensors"); }),
                 Contains("InvalidInput") && Contains("broken.safetensors") && Contains(broken.expected));
    }
  }
}

TEST_CASE("a small file cannot make a large matrix be allocated", "[statistics]") {
  const given::TempFolder folder;
  SafetensorsWriter writer(folder / "wide.safetensors", {{"routed_count", Dtype::f64, {1, 8, 100'000}}},
                           {{"moetrim_format", "statistics-layer-1"}, {"moetrim_layer", "0"}});
  writer.write(std::vector<std::byte>(8 * 8 * 100'000));
  writer.finish();  // co-activation would take 80 GB
  CHECK_THAT(given::thrown_by([&] { read_layer_statistics(folder / "wide.safetensors"); }), Contains("gate_sum is missing"));
}

TEST_CASE("layer files sort by layer", "[statistics]") {
  CHECK(layer_file_name(3) == "layer-00003.safetensors");
  CHECK(layer_file_name(120) == "layer-00120.safetensors");
}
