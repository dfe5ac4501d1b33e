// Which bytes of the source every tensor of the new checkpoint is made of.

#include "testing.h"

#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;

namespace {

/// What an output tensor will hold.
std::vector<std::byte> bytes_of(const Checkpoint& source, const OutputTensor& tensor) {
  std::vector<std::byte> out;
  for (const Piece& piece : tensor.pieces) {
    std::vector<std::byte> part(piece.end - piece.begin);
    source.read(*piece.source, piece.begin, part);
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

std::map<std::string, const OutputTensor*> by_name(const std::vector<OutputTensor>& tensors) {
  std::map<std::string, const OutputTensor*> out;
  for (const auto& tensor : tensors) REQUIRE(out.emplace(tensor.spec.name, &tensor).second);
  return out;
}

/// Rows `keep` of a tensor whose first axis has `experts` entries, computed without pieces.
std::vector<std::byte> rows(const std::vector<std::byte>& all, int experts, const std::vector<int>& keep) {
  const std::size_t row = all.size() / static_cast<std::size_t>(experts);
  std::vector<std::byte> out;
  for (const int expert : keep) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(row * static_cast<std::size_t>(expert));
    out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(row));
  }
  return out;
}

/// Where output tensors come from, said again without the code under test: by name and rule of the family.
void check_against_source(const Model& model, const Plan& plan, const std::vector<OutputTensor>& tensors) {
  const Checkpoint& source = *model.checkpoint;
  const auto outputs = by_name(tensors);
  std::size_t expected_count = 0;
  for (std::size_t i = 0; i < source.tensors().size(); ++i) {
    const Tensor& tensor = source.tensors()[i];
    const TensorPlace& place = model.places[i];
    const PlanLayer* layer = nullptr;
    for (const auto& candidate : plan.layers) {
      if (candidate.layer == place.layer) layer = &candidate;
    }
    const auto& axes = place.rule->axes;
    const auto axis = static_cast<std::size_t>(std::find(axes.begin(), axes.end(), Axis::E) - axes.begin());
    const bool expert_axis = axis < axes.size();  // everything before it has length 1
    std::string name = tensor.name;
    std::vector<std::byte> expected = source.read(tensor);
    std::vector<std::int64_t> shape = tensor.shape;
    if (place.expert >= 0) {
      const auto found = std::find(layer->keep.begin(), layer->keep.end(), place.expert);
      if (found == layer->keep.end()) continue;
      const std::string old_part = ".experts." + std::to_string(place.expert) + ".";
      const std::string new_part = ".experts." + std::to_string(found - layer->keep.begin()) + ".";
      name.replace(name.find(old_part), old_part.size(), new_part);
    } else if (expert_axis) {
      expected = rows(expected, plan.experts, layer->keep);
      shape[axis] = plan.keep;
    }
    INFO(tensor.name << " -> " << name);
    REQUIRE(outputs.count(name) == 1);
    const OutputTensor& output = *outputs.at(name);
    CHECK(output.spec.dtype == tensor.dtype);
    CHECK(output.spec.shape == shape);
    CHECK(output.spec.bytes() == expected.size());
    CHECK(bytes_of(source, output) == expected);
    ++expected_count;
  }
  CHECK(outputs.size() == expected_count);
}

}  // namespace

TEST_CASE("two of three experts kept, by hand", "[rewrite]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {.layers = 1, .experts = 3});
  const Checkpoint source = Checkpoint::open(folder.path());
  const Model model = describe(source);
  const auto tensors = plan_tensors(model, plan_keeping(model, {{0, 2}}));
  const auto outputs = by_name(tensors);
  CHECK(outputs.count("model.layers.0.mlp.experts.2.up_proj.weight") == 0);
  const auto& moved = *outputs.at("model.layers.0.mlp.experts.1.up_proj.weight");
  REQUIRE(moved.pieces.size() == 1);
  CHECK(moved.pieces[0].source->name == "model.layers.0.mlp.experts.2.up_proj.weight");
  const auto& router = *outputs.at("model.layers.0.mlp.gate.weight");  // [3, 8] f32: 32 bytes a row
  REQUIRE(router.pieces.size() == 2);
  CHECK(router.pieces[0].begin == 0);
  CHECK(router.pieces[0].end == 32);
  CHECK(router.pieces[1].begin == 64);
  CHECK(router.pieces[1].end == 96);
}

TEST_CASE("kept experts keep their bytes, in every family and layout", "[rewrite][every]") {
  const Family* family = GENERATE(from_range(families()));
  const bool fused = GENERATE(false, true);
  const int experts = GENERATE(5, 7, 11);
  CAPTURE(family->name, fused, experts);
  TempFolder folder;
  TinyModel tiny{.family = std::string(family->name), .fused = fused, .layers = 3, .experts = experts, .shards = 2};
  tiny.dense_first = family->moe_layers != MoeLayers::all && family->moe_layers != MoeLayers::interleaved;
  write_tiny_checkpoint(folder.path(), tiny);
  const Checkpoint source = Checkpoint::open(folder.path());
  const Model model = describe(source);
  std::vector<int> all, odd;
  for (int i = 0; i < experts; ++i) {
    all.push_back(i);
    if (i % 2 == 1) odd.push_back(i);
  }
  const int last = experts - 1;
  for (const auto& keeps : std::vector<std::vector<std::vector<int>>>{
           {all}, {odd}, {{0, 1, 2}, {last - 2, last - 1, last}}, {{3, 0, last}, {last, 1, 0}}, {{1, 2}, {0, last}}}) {
    CAPTURE(keeps);
    const Plan plan = plan_keeping(model, keeps);
    CHECK_NOTHROW(check_plan(model, plan, source.fingerprint()));
    check_against_source(model, plan, plan_tensors(model, plan));
  }
}

TEST_CASE("an identity plan copies every tensor whole and in order", "[rewrite]") {
  TempFolder folder;
  const bool fused = GENERATE(false, true);
  write_tiny_checkpoint(folder.path(), {.fused = fused, .experts = 5});
  const Checkpoint source = Checkpoint::open(folder.path());
  const Model model = describe(source);
  const auto tensors = plan_tensors(model, plan_keeping(model, {{0, 1, 2, 3, 4}}));
  REQUIRE(tensors.size() == source.tensors().size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    CHECK(tensors[i].spec.name == source.tensors()[i].name);
    REQUIRE(tensors[i].pieces.size() == 1);  // adjacent rows are joined
    CHECK(tensors[i].pieces[0].end == source.tensors()[i].size);
  }
}

TEST_CASE("an expert axis that is not the first is sliced too", "[rewrite]") {
  // Ernie keeps a [1, E] bias; here the description is made by hand.
  TempFolder folder;
  SafetensorsWriter writer(folder / "model.safetensors", {{"bias", Dtype::u8, {2, 3, 2}}});
  writer.write(std::as_bytes(std::span("abcdefghijkl", 12)));
  writer.finish();
  write_text(folder / "config.json", "{}");
  const Checkpoint source = Checkpoint::open(folder.path());
  const TensorRule rule{Role::router, "bias", {Axis::one, Axis::E, Axis::one}};
  Model model;
  model.checkpoint = &source;
  model.layers = 1;
  model.experts = 3;
  model.places = {{&rule, 0, -1}};
  Plan plan;
  plan.experts = 3;
  plan.keep = 2;
  plan.layers.push_back({.layer = 0, .keep = {2, 0}});
  const auto tensors = plan_tensors(model, plan);
  REQUIRE(tensors.size() == 1);
  CHECK(tensors[0].spec.shape == std::vector<std::int64_t>{2, 2, 2});
  std::string text;
  for (const auto byte : bytes_of(source, tensors[0])) text += static_cast<char>(byte);
  CHECK(text == "efabklgh");
}

TEST_CASE("rows of a packed tensor that do not end on a byte are refused", "[rewrite]") {
  TempFolder folder;
  SafetensorsWriter writer(folder / "model.safetensors", {{"packed", Dtype::f4, {2, 3}}});
  writer.write(std::as_bytes(std::span("abc", 3)));
  writer.finish();
  write_text(folder / "config.json", "{}");
  const Checkpoint source = Checkpoint::open(folder.path());
  const TensorRule rule{Role::router, "packed", {Axis::E, Axis::H}};
  Model model;
  model.checkpoint = &source;
  model.layers = 1;
  model.experts = 2;
  model.places = {{&rule, 0, -1}};
  Plan plan;
  plan.layers.push_back({.layer = 0, .keep = {1}});
  CHECK_THROWS_AS(plan_tensors(model, plan), InvalidInput);
}
