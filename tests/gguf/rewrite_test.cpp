// Plans applied to GGUF files: which bytes go where, what the keys say then, and what is refused.

#include "testing.h"

#include <algorithm>
#include <atomic>
#include <set>

#include "gguf/given_model.h"
#include "moetrim/error.h"
#include "moetrim/gguf_rewrite.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::given;
using moetrim::testing::TempFolder;
namespace fs = std::filesystem;

namespace {

/// Rewrites `in` to OUT.gguf. @return the first file
fs::path rewrite(const fs::path& in, const Plan& plan, const fs::path& out, Mtp mtp = Mtp::prune, const GgufWriteOptions& options = {}) {
  const GgufModel source = GgufModel::open(in);
  return write_gguf(prepare_gguf_rewrite(describe_gguf(source), plan, mtp), out, options).front();
}

/// What rewriting throws, or nothing.
std::string refusal(const fs::path& in, const Plan& plan, Mtp mtp = Mtp::prune) {
  try {
    const GgufModel source = GgufModel::open(in);
    prepare_gguf_rewrite(describe_gguf(source), plan, mtp);
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

std::vector<std::byte> bytes_of(const GgufModel& model, const GgufTensor& tensor, std::uint64_t begin, std::uint64_t size) {
  std::vector<std::byte> out(size);
  model.read(tensor, begin, out);
  return out;
}

/// Every tensor of the new model holds the bytes of its own in the old one, of the kept experts where it has any.
void check_bytes(const fs::path& before_file, const fs::path& after_file, const std::vector<int>& keep) {
  const GgufModel before = GgufModel::open(before_file), after = GgufModel::open(after_file);
  const GgufMoe model = describe_gguf(before);
  for (std::size_t i = 0; i < before.tensors().size(); ++i) {
    const GgufTensor& old = before.tensors()[i];
    const GgufTensor* fresh = after.find(old.name);
    CAPTURE(old.name);
    REQUIRE(fresh != nullptr);
    CHECK(fresh->type == old.type);
    CHECK(fresh->file == old.file);
    if (!model.places[i].by_expert) {
      CHECK(fresh->shape == old.shape);
      CHECK(bytes_of(before, old, 0, old.size) == bytes_of(after, *fresh, 0, fresh->size));
      continue;
    }
    REQUIRE(fresh->shape.back() == keep.size());
    const std::uint64_t slab = old.size / static_cast<std::uint64_t>(model.experts);
    for (std::size_t slot = 0; slot < keep.size(); ++slot) {
      const bool same = bytes_of(after, *fresh, slot * slab, slab) == bytes_of(before, old, static_cast<std::uint64_t>(keep[slot]) * slab, slab);
      CHECK(same);
    }
  }
}

std::vector<GgmlType> all_types() {
  std::vector<GgmlType> out;
  for (std::uint32_t id = 0; id < 64; ++id) {
    if (find_ggml_layout(static_cast<GgmlType>(id)) != nullptr) out.push_back(static_cast<GgmlType>(id));
  }
  return out;
}

std::uint64_t whole(const fs::path& file, std::string_view key) { return GgufModel::open(file).metadata().whole(key, file).value_or(999); }
std::string text(const fs::path& file, std::string_view key) { return GgufModel::open(file).metadata().text(key, file).value_or("none"); }

}  // namespace

TEST_CASE("kept experts keep their bytes, whatever the type", "[gguf]") {
  for (const GgmlType type : all_types()) {
    const GgmlLayout& layout = ggml_layout(type);
    CAPTURE(layout.name);
    TempFolder folder;
    const GgufMoeModel model{.type = type, .hidden = 256, .width = 256, .biases = true};
    const fs::path in = write_gguf_model(folder.path(), model);
    const std::vector<int> keep{0, 2, 3, 5};
    for (const bool in_kernel : {false, true}) {
      const GgufWriteOptions options{.overwrite = true, .writers = 3, .in_kernel = in_kernel};
      check_bytes(in, rewrite(in, model.plan(keep), folder.path() / "out.gguf", Mtp::prune, options), keep);
    }
  }
}

TEST_CASE("slots may come in any order and twice, also in tensors of several moves", "[gguf]") {
  TempFolder folder;
  const GgufMoeModel model{.blocks = 2, .experts = 40, .hidden = 256, .width = 256, .biases = true};  // 10 MiB a tensor
  const fs::path in = write_gguf_model(folder.path(), model);
  std::vector<int> keep{5, 4, 0, 0, 1, 2, 3, 5};
  for (int slot = 0; slot < 36; ++slot) keep.push_back(slot * 7 % 40);
  Plan plan = model.plan(keep);
  plan.order = SlotOrder::free;
  const fs::path out = rewrite(in, plan, folder.path() / "out.gguf", Mtp::prune, {.writers = 2, .in_kernel = GENERATE(false, true)});
  check_bytes(in, out, keep);
  CHECK(whole(out, "qwen3moe.expert_count") == 44);
}

TEST_CASE("keys follow the plan and keep their types and order", "[gguf]") {
  TempFolder folder;
  GgufMoeModel model{.blocks = 2, .experts = 8, .experts_per_token = 2, .groups = 2};
  model.keys = [](GgufMetadata& metadata) {
    metadata.set("general.size_label", std::string("30B-A3B"));
    metadata.set("quantize.imatrix.file", std::string("there"));
    metadata.set("qwen3moe.expert_count", std::uint16_t{8});
    metadata.set(kGgufSourceKey, std::string("original"));
  };
  const fs::path in = write_gguf_model(folder.path(), model);
  Plan plan = model.plan({0, 1, 6, 7});
  SECTION("groups stay") {
    const fs::path out = rewrite(in, plan, folder.path() / "out.gguf");
    const GgufModel before = GgufModel::open(in), after = GgufModel::open(out);
    CHECK(after.metadata().find("qwen3moe.expert_count") != nullptr);
    CHECK(*after.metadata().find("qwen3moe.expert_count") == GgufValue(std::uint16_t{4}));
    CHECK(whole(out, "qwen3moe.expert_group_count") == 2);
    CHECK(text(out, "general.name") == "Given 10M 4 experts");
    CHECK(text(out, "general.size_label") == "29K-A3B");  // 28 992 parameters
    CHECK(text(out, "quantize.imatrix.file") == "there");
    CHECK(text(out, kGgufSourceKey) == "none");
    CHECK(text(out, kGgufPlanKey).size() == 32);
    std::vector<std::string> keys;
    for (const auto& [key, value] : before.metadata().items()) {
      if (key != kGgufSourceKey) keys.push_back(key);
    }
    keys.emplace_back(kGgufPlanKey);
    for (std::size_t i = 0; i < keys.size(); ++i) CHECK(after.metadata().items().at(i).first == keys[i]);
    CHECK_THAT(refusal(out, model.plan({0, 1, 6, 7})), Catch::Matchers::Contains("chooses among 8 experts per layer, the file has 4"));
  }
  SECTION("one group, and fewer experts per token") {
    plan.regroup = true;
    plan.experts_per_token_after = 1;
    const fs::path out = rewrite(in, plan, folder.path() / "out.gguf");
    CHECK(whole(out, "qwen3moe.expert_group_count") == 1);
    CHECK(whole(out, "qwen3moe.expert_group_used_count") == 1);
    CHECK(whole(out, "qwen3moe.expert_used_count") == 1);
    CHECK(text(out, "general.size_label") == "29K-A10K");  // 3648 shared and 6336 of an expert
  }
  SECTION("another checkpoint's plan") {
    plan.checkpoint_fingerprint = "another";
    CHECK_THAT(refusal(in, plan), Catch::Matchers::Contains("fingerprint \"another\", the file was exported from \"original\""));
  }
  SECTION("unequal groups") {
    CHECK_THAT(refusal(in, model.plan({0, 1, 7})), Catch::Matchers::Contains("every group must keep the same number"));
  }
}

TEST_CASE("size labels by the rule of gguf-py", "[gguf]") {
  // 128 experts of 3 x 2048 x 768 in 48 layers: 29.0 B, and 1.5 B of all else.
  GgufOutputFile file;
  for (int i = 0; i < 48; ++i) {
    file.tensors.push_back({.spec = {fmt::format("blk.{}.ffn_gate_up_exps.weight", i), GgmlType::f32, {2048, 1536, 128}}});
    file.tensors.push_back({.spec = {fmt::format("blk.{}.ffn_down_exps.weight", i), GgmlType::f32, {768, 2048, 128}}});
  }
  file.tensors.push_back({.spec = {"output.weight", GgmlType::f32, {1'541'000'000}}});
  CHECK(gguf_size_label("128x1.8B", {file}, 128, 8, false) == "128x1.8B");
  CHECK(gguf_size_label("30B-A3B", {file}, 128, 8, false) == "31B-A3B");
  CHECK(gguf_size_label("30B-A3B", {file}, 128, 4, true) == "31B-A2.4B");
  CHECK(gguf_size_label("Large", {}, 4, 2, false) == "4x0.00K");
}

TEST_CASE("a split model stays split, and multi-token prediction goes where that is wanted", "[gguf]") {
  TempFolder folder;
  GgufMoeModel model{.architecture = "glm4moe", .family = "glm4_moe", .blocks = 4, .mtp = 1};
  model.keys = [](GgufMetadata& metadata) {
    metadata.set("glm4moe.attention.head_count_kv", GgufArray::of_u32(std::vector<std::uint32_t>{1, 2, 3, 4}));
    metadata.set("glm4moe.rope.dimension_sections", GgufArray::of_u32(std::vector<std::uint32_t>{8, 8, 8, 0}));
  };
  const fs::path in = write_gguf_model(folder.path(), model, 3);
  const std::vector<int> keep{1, 2, 4};
  Plan plan = model.plan(keep);
  SECTION("pruned") {
    const fs::path out = rewrite(in, plan, folder.path() / "out-00001-of-00003.gguf");
    CHECK(out.filename() == "out-00001-of-00003.gguf");
    check_bytes(in, out, keep);
    CHECK_THAT(refusal(in, plan, Mtp::keep), Catch::Matchers::Contains("one expert_count"));
    plan.layers.pop_back();
    CHECK_THAT(refusal(in, plan), Catch::Matchers::Contains("does not cover the 1 multi-token-prediction block(s)"));
  }
  SECTION("dropped, by a plan that has it") {
    const fs::path out = rewrite(in, plan, folder.path() / "out.gguf", Mtp::drop);
    const GgufModel after = GgufModel::open(out);
    CHECK(after.find("blk.3.attn_q.weight") == nullptr);
    CHECK(whole(out, "glm4moe.block_count") == 3);
    CHECK(whole(out, "glm4moe.nextn_predict_layers") == 0);
    const auto& cut = std::get<GgufArray>(*after.metadata().find("glm4moe.attention.head_count_kv"));
    CHECK(cut.whole_numbers("cut") == std::vector<std::int64_t>{1, 2, 3});
    CHECK(std::get<GgufArray>(*after.metadata().find("glm4moe.rope.dimension_sections")).size() == 4);
    describe_gguf(after);
    // The file has no such block any more, and the plan still does.
    Plan again = model.plan({0, 1});
    again.experts = 3;
    GgufMoe described = describe_gguf(after);
    CHECK_THROWS_WITH(prepare_gguf_rewrite(described, again, Mtp::prune, true), Catch::Matchers::Contains("say so with --mtp drop"));
    CHECK_NOTHROW(prepare_gguf_rewrite(described, again, Mtp::drop, true));
  }
  SECTION("a list that nobody knows") {
    model.keys = [](GgufMetadata& metadata) { metadata.set("glm4moe.new.list", GgufArray::of_u32(std::vector<std::uint32_t>(4))); };
    CHECK_THAT(refusal(write_gguf_model(folder.path(), model), plan, Mtp::drop), Catch::Matchers::Contains("glm4moe.new.list"));
  }
}

TEST_CASE("drift is corrected where llama.cpp reads a factor", "[gguf]") {
  TempFolder folder;
  const std::string architecture = GENERATE("deepseek2", "qwen3moe");
  GgufMoeModel model{.architecture = architecture, .family = architecture == "deepseek2" ? "deepseek_v2" : "qwen3_moe"};
  model.keys = [](GgufMetadata& metadata) { metadata.set("deepseek2.expert_weights_scale", 2.0F); };
  const fs::path in = write_gguf_model(folder.path(), model);
  Plan plan = model.plan({0, 1, 2});
  plan.correct_drift = true;
  for (PlanLayer& layer : plan.layers) layer.kept_mass = 0.75;
  if (architecture == "qwen3moe") {
    CHECK_THAT(refusal(in, plan), Catch::Matchers::Contains("make the plan without --correct-drift"));
    return;
  }
  const fs::path out = rewrite(in, plan, folder.path() / "out.gguf");
  CHECK(GgufModel::open(out).metadata().real("deepseek2.expert_weights_scale", out) == 1.5);
}

TEST_CASE("what bytes cannot do is refused by name", "[gguf]") {
  TempFolder folder;
  const GgufMoeModel model;
  const fs::path in = write_gguf_model(folder.path(), model);
  struct Case {
    std::function<void(Plan&)> edit;
    const char* message;
  };
  const std::vector<int> keep{0, 1, 2};
  const std::vector<Case> cases{
      {[](Plan& p) { p.width = 32; }, "it chooses atomic experts"},
      {[](Plan& p) { p.layers[0].merge = {{.into = 0, .members = {0, 3}, .weights = {0.5, 0.5}}}; }, "it merges experts"},
      {[](Plan& p) { p.layers[1].scale = {{.expert = 1, .factor = 2}}; }, "it scales experts"},
      {[](Plan& p) { p.layers[0].silence = {1}; }, "it silences experts"},
      {[](Plan& p) { p.layers[0].constant = {1}; }, "it replaces experts by constants"},
      {[](Plan& p) { p.layers[0].smooth = {1}; }, "it smooths hidden channels"},
      {[](Plan& p) { p.noise = 0.1; }, "it adds noise"},
      {[](Plan& p) { p.counts = LayerCounts::listed, p.layers[0].keep.pop_back(); }, "layer 1 keeps 2 experts, expected 3"},
      {[](Plan& p) { p.family = "mixtral"; }, "made for family \"mixtral\", the file is of architecture qwen3moe"},
      {[](Plan& p) { p.experts = 7; }, "chooses among 7 experts per layer, the file has 6"},
      {[](Plan& p) { p.experts_per_token = 1; }, "made for 1 experts per token, the file has 2"},
      {[](Plan& p) { p.layers.pop_back(); }, "expected layers [1, 2], got [1]"},
      {[](Plan& p) { p.layers[0].keep[2] = 6; }, "layer 1 keeps expert 6, expected 0 to 5"},
      {[](Plan& p) { p.layers[0].keep[2] = 1; }, "layer 1 keeps expert 1 twice"},
      {[](Plan& p) {
         p.keep = 1;
         for (PlanLayer& layer : p.layers) layer.keep = {4};
       }, "a token is routed to 2 experts"},
  };
  for (const auto& [edit, message] : cases) {
    Plan plan = model.plan(keep);
    edit(plan);
    CHECK_THAT(refusal(in, plan), Catch::Matchers::Contains(message));
  }
}

TEST_CASE("what llama.cpp guesses from the number of experts stays as it is", "[gguf]") {
  TempFolder folder;
  const GgufMoeModel maverick{.architecture = "llama4", .family = "llama4", .experts = 128};
  const std::string why = refusal(write_gguf_model(folder.path(), maverick), maverick.plan({0, 1, 2}));
  CHECK_THAT(why, Catch::Matchers::Contains("unless it has 128 experts"));
}

TEST_CASE("files that are no such model are refused by name", "[gguf]") {
  TempFolder folder;
  struct Case {
    std::function<void(GgufMoeModel&)> edit;
    const char* message;
  };
  const auto key = [](const char* name, auto value) {
    return [=](GgufMoeModel& model) { model.keys = [=](GgufMetadata& metadata) { metadata.set(name, GgufValue(value)); }; };
  };
  const auto tensor = [](const char* name, std::vector<std::uint64_t> shape) {
    return [=](GgufMoeModel& model) { model.more = {{name, GgmlType::f32, shape}}; };
  };
  const std::vector<Case> cases{
      {key("general.type", std::string("adapter")), "is a LoRA adapter"},
      {key("general.type", std::string("imatrix")), "is an importance matrix"},
      {key("general.architecture", std::string("clip")), "is the projector"},
      {key("general.architecture", std::string("qwen3mo")), "did you mean \"qwen3moe\"?"},
      {key("qwen3moe.expert_count", std::uint32_t{7}), "has 6 experts, and qwen3moe.expert_count is 7"},
      {key("qwen3moe.expert_count", std::uint32_t{0}), "the model has no experts"},
      {key("qwen3moe.expert_used_count", std::uint32_t{7}), "qwen3moe.expert_used_count: is 7, expected 1 to 6"},
      {key("qwen3moe.expert_used_count", GgufArray::of_u32(std::vector<std::uint32_t>{1, 2, 2})), "gives every layer a number"},
      {key("qwen3moe.expert_group_count", std::uint32_t{4}), "qwen3moe.expert_group_used_count: is missing"},
      {key("qwen3moe.block_count", std::uint32_t{2}), "blk.2.attn_q.weight: is of no block"},
      {key("qwen3moe.nextn_predict_layers", std::uint32_t{3}), "qwen3moe.nextn_predict_layers: is 3, expected 0 to 2"},
      {tensor("blk.1.ffn_new.weight", {3, 6}), "blk.1.ffn_new.weight: is no tensor that moetrim knows"},
      {tensor("blk.1.ffn_gate.3.weight", {3, 5}), "holds one expert alone"},
      {tensor("blk.1.ffn_gate_exps.bias", {3, 5}), "has 5 experts, and qwen3moe.expert_count is 6"},
      {tensor("blk.1.ffn_gate_exps.bias", {6}), "has 1 extents, expected 2"},
      {tensor("blk.0.ffn_gate_inp.weight", {64, 6}), "blk.0: has experts, but no ffn_down_exps.weight"},
      {tensor("blk.99999999999.attn_q.weight", {3}), "is of no block"},
  };
  for (const auto& [edit, message] : cases) {
    GgufMoeModel model;
    edit(model);
    const fs::path in = write_gguf_model(folder.path(), model);
    CAPTURE(message);
    CHECK_THROWS_WITH(describe_gguf(GgufModel::open(in)), Catch::Matchers::Contains(message));
  }
}

TEST_CASE("outputs appear whole or not at all", "[gguf]") {
  TempFolder folder;
  const GgufMoeModel model;
  const int files = GENERATE(1, 2);
  const fs::path in = write_gguf_model(folder.path(), model, static_cast<std::uint16_t>(files));
  const Plan plan = model.plan({0, 1, 5});
  const fs::path target = folder.path() / "out.gguf", staging = folder.path() / ".out.gguf.moetrim-partial";
  const fs::path first = files == 1 ? target : folder.path() / "out-00001-of-00002.gguf";
  const std::atomic<bool> stop = true;
  CHECK_THROWS_AS(rewrite(in, plan, target, Mtp::prune, {.stop = &stop}), Interrupted);
  CHECK_FALSE(fs::exists(first));
  CHECK_FALSE(fs::exists(staging));

  // Killed: its working folder is there, with anything in it, and the last file has its name already.
  fs::create_directory(staging);
  testing::write_text(staging / "out-00001-of-00002.gguf", "half");
  if (files == 2) testing::write_text(folder.path() / "out-00002-of-00002.gguf", "of an interrupted run");
  rewrite(in, plan, target);
  CHECK_FALSE(fs::exists(staging));
  check_bytes(in, first, {0, 1, 5});

  CHECK_THROWS_WITH(rewrite(in, plan, target), Catch::Matchers::Contains("exists; name another"));
  rewrite(in, model.plan({0, 1, 2, 3}), target, Mtp::prune, {.overwrite = true});
  check_bytes(in, first, {0, 1, 2, 3});
  CHECK_THROWS_WITH(rewrite(in, plan, folder.path() / "in.gguf", Mtp::prune, {.overwrite = true}), Catch::Matchers::Contains("is the source itself"));
  CHECK_THROWS_WITH(rewrite(in, plan, folder.path() / "out"), Catch::Matchers::Contains("give a name that ends in .gguf"));
  fs::copy_file(in, folder.path() / (files == 1 ? "foreign.gguf" : "foreign-00001-of-00002.gguf"));
  CHECK_THROWS_WITH(rewrite(in, plan, folder.path() / "foreign.gguf", Mtp::prune, {.overwrite = true}),
                    Catch::Matchers::Contains("moetrim did not write it"));
}
