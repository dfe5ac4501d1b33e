// What describe refuses: groups that no router can choose from, counts that contradict the tensors.

#include "testing.h"

#include "moetrim/error.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
using Catch::Matchers::Contains;
using Json = nlohmann::ordered_json;

namespace {

void write_config(const TempFolder& folder, const TinyModel& tiny, const Json& changes) {
  Json config = tiny::config(tiny);
  config.update(changes);
  write_text(folder / "config.json", config.dump());
}

/// What describe refuses the checkpoint with; empty where it takes it.
std::string refusal(const TempFolder& folder) {
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  try {
    describe(checkpoint);
  } catch (const InvalidInput& error) {
    return error.what();
  }
  return {};
}

std::string refusal(const TinyModel& tiny, const Json& changes) {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), tiny);
  write_config(folder, tiny, changes);
  return refusal(folder);
}

/// The same, with one more tensor in the checkpoint for each of these layers: the first of a multi-token-prediction block.
std::string refusal_with_mtp(const std::vector<int>& layers, const Json& changes) {
  const TinyModel tiny{.family = "deepseek_v3"};
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), tiny);
  auto specs = tiny::specs(tiny);
  for (const int layer : layers) {
    specs.push_back({"model.layers." + std::to_string(layer) + ".enorm.weight", Dtype::bf16, {tiny.hidden}});
  }
  std::mt19937_64 random(1);
  SafetensorsWriter writer(folder / "model.safetensors", specs);
  for (const auto& spec : specs) writer.write(tiny::random_bytes(spec, random));
  writer.finish();
  write_config(folder, tiny, changes);
  return refusal(folder);
}

}  // namespace

TEST_CASE("groups that fit are taken", "[family][groups]") {
  CHECK(refusal({.family = "deepseek_v3", .experts = 8}, {{"n_group", 4}, {"topk_group", 2}}).empty());
  CHECK(refusal({.family = "deepseek_v3", .experts = 7}, {{"n_group", 1}, {"topk_group", 1}}).empty());
  CHECK(refusal({.family = "PanguProMoE", .experts = 8}, {{"num_experts_per_tok", 4}}).empty());
  // DeepSeek-V2-Lite has groups in its config and a router that does not use them.
  CHECK(refusal({.family = "deepseek_v2", .experts = 7}, {{"n_group", 3}, {"topk_group", 2}, {"topk_method", "greedy"}}).empty());
}

TEST_CASE("groups of unequal size are refused", "[family][groups]") {
  const auto why = refusal({.family = "deepseek_v3", .experts = 10}, {{"n_group", 4}, {"topk_group", 2}});
  CHECK_THAT(why, Contains("10 experts in 4 groups") && Contains("would not be equal"));
  const Json limited{{"n_group", 3}, {"topk_group", 2}, {"topk_method", "group_limited_greedy"}};
  CHECK_THAT(refusal({.family = "deepseek_v2", .experts = 7}, limited), Contains("would not be equal"));
  CHECK_THAT(refusal({.family = "PanguProMoE", .experts = 7}, {{"num_experts_per_tok", 2}}), Contains("would not be equal"));
}

TEST_CASE("a group scored by two experts has two", "[family][groups]") {
  const auto why = refusal({.family = "deepseek_v3", .experts = 4}, {{"n_group", 4}, {"topk_group", 2}});
  CHECK_THAT(why, Contains("two best experts and has only one"));
  // Its best expert alone is enough for the other rule.
  const Json limited{{"n_group", 4}, {"topk_group", 2}, {"topk_method", "group_limited_greedy"}};
  CHECK(refusal({.family = "deepseek_v2", .experts = 4}, limited).empty());
}

TEST_CASE("no more groups are chosen than there are", "[family][groups]") {
  const auto why = refusal({.family = "deepseek_v3", .experts = 8}, {{"n_group", 4}, {"topk_group", 5}});
  CHECK_THAT(why, Contains("5 groups and 2 experts per token") && Contains("more groups are chosen than there are"));
}

TEST_CASE("the chosen groups have enough experts", "[family][groups]") {
  const Json config{{"n_group", 4}, {"topk_group", 1}, {"num_experts_per_tok", 3}};
  CHECK_THAT(refusal({.family = "deepseek_v3", .experts = 8}, config), Contains("do not have that many experts"));
}

TEST_CASE("every group gives the same number of experts", "[family][groups]") {
  const Json config{{"num_expert_groups", 2}, {"num_experts_per_tok", 3}};
  CHECK_THAT(refusal({.family = "PanguProMoE", .experts = 8}, config), Contains("every group must give the same number"));
}

TEST_CASE("more multi-token-prediction blocks than config.json counts are refused", "[family][mtp]") {
  CHECK_THAT(refusal_with_mtp({2, 3}, {{"num_nextn_predict_layers", 1}}),
             Contains("\"num_nextn_predict_layers\" is 1") && Contains("tensors of 2 multi-token-prediction blocks"));
  CHECK_THAT(refusal_with_mtp({2}, {{"num_nextn_predict_layers", 0}}), Contains("tensors of 1 multi-token-prediction blocks"));
  // A count that agrees passes on to the tensors, most of which this block lacks.
  CHECK_THAT(refusal_with_mtp({2}, {{"num_nextn_predict_layers", 1}}), Contains("model.layers.2.") && Contains("is missing"));
}

TEST_CASE("blocks that config.json counts and the checkpoint lacks are none", "[family][mtp]") {
  CHECK(refusal_with_mtp({}, {{"num_nextn_predict_layers", 1}}).empty());
}

TEST_CASE("DeepSeek-V2 with normalised gates is refused", "[family]") {
  CHECK_THAT(refusal({.family = "deepseek_v2"}, {{"norm_topk_prob", true}}), Contains("norm_topk_prob is true"));
  CHECK(refusal({.family = "deepseek_v2"}, {{"norm_topk_prob", false}}).empty());
}

TEST_CASE("a scoring function that contradicts the family is refused, other names of it are not", "[family]") {
  CHECK_THAT(refusal({.family = "deepseek_v3"}, {{"scoring_func", "softmax"}}), Contains("scoring_func is \"softmax\""));
  CHECK_THAT(refusal({.family = "deepseek_v2"}, {{"scoring_func", "sigmoid"}}), Contains("scoring_func is \"sigmoid\""));
  CHECK(refusal({.family = "deepseek_v3"}, {{"scoring_func", "sigmoid"}}).empty());
  CHECK(refusal({.family = "dots1"}, {{"scoring_func", "noaux_tc"}}).empty());
}

TEST_CASE("SparseMixer routes to two experts", "[family]") {
  CHECK_THAT(refusal({.family = "phimoe"}, {{"num_experts_per_tok", 3}}), Contains("SparseMixer routes to 2 experts"));
}
