// config.json of the new checkpoint.

#include "testing.h"

#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
using Json = nlohmann::ordered_json;

namespace {

/// The rewritten config after `edit` was made to the source's. Layer 0 keeps 1, 3, 6 and layer 1 keeps 0, 1, 2.
template <class Edit>
Json rewritten(const TempFolder& folder, const TinyModel& tiny, Edit edit, std::vector<std::string>* warnings = nullptr) {
  write_tiny_checkpoint(folder.path(), tiny);
  Json config = tiny::config(tiny);
  edit(config);
  write_text(folder / "config.json", config.dump());
  const Checkpoint source = Checkpoint::open(folder.path());
  const Model model = describe(source);
  const Plan plan = plan_keeping(model, {{1, 3, 6}, {0, 1, 2}});
  if (warnings != nullptr) *warnings = rewrite_warnings(model, plan);
  return rewrite_config(model, plan);
}

const auto kNoEdit = [](Json&) {};

}  // namespace

TEST_CASE("only expert counts change, every alias that is there, none is added", "[rewrite]") {
  const Family* family = GENERATE(from_range(families()));
  const bool both = GENERATE(false, true);
  CAPTURE(family->name, both);
  TempFolder folder;
  const TinyModel tiny{.family = std::string(family->name), .both_aliases = both};
  Json expected = tiny::config(tiny);
  expected[std::string(family->expert_count_keys[0])] = 3;
  if (both) expected[std::string(family->expert_count_keys[1])] = 3;
  CHECK(rewritten(folder, tiny, kNoEdit).dump(2) == expected.dump(2));  // also the order of keys and spelling of numbers
}

TEST_CASE("a nested text_config is edited where it counts experts", "[rewrite]") {
  TempFolder folder;
  const Json config = rewritten(folder, {}, [](Json& json) {
    json["text_config"] = {{"num_local_experts", 7}, {"hidden_size", 9}};
    json["vision_config"] = {{"num_experts", 7}};
    json["num_local_experts"] = nullptr;
  });
  CHECK(config["text_config"].dump() == R"({"num_local_experts":3,"hidden_size":9})");
  CHECK(config["vision_config"]["num_experts"] == 7);
  CHECK(config["num_local_experts"].is_null());
}

TEST_CASE("a nested count that contradicts is refused", "[rewrite]") {
  TempFolder folder;
  CHECK_THROWS_AS(rewritten(folder, {}, [](Json& json) { json["text_config"] = {{"num_experts", 64}}; }), InvalidInput);
}

TEST_CASE("lists of modules follow the new expert numbers", "[rewrite]") {
  TempFolder folder;
  const char* key = GENERATE("ignore", "modules_to_not_convert");
  std::vector<std::string> warnings;
  const Json config = rewritten(folder, {}, [&](Json& json) {
    json["quantization_config"] = {{"quant_method", "x"}, {key, {
        "lm_head", "model.layers.0.mlp.gate", "model.layers.0.mlp.experts.3.down_proj", "model.layers.0.mlp.experts.0.up_proj",
        "model.layers.0.mlp.experts.6", "language_model.model.layers.1.mlp.experts.2.up_proj",
        "model.layers.1.mlp.experts.3.up_proj", "model.layers.61.mlp.experts.17.up_proj", "re:.*mlp.gate$",
        "re:.*experts.5.*", "mlp.experts"}}};
  }, &warnings);
  const Json expected = {"lm_head", "model.layers.0.mlp.gate", "model.layers.0.mlp.experts.1.down_proj",
                         "model.layers.0.mlp.experts.2", "language_model.model.layers.1.mlp.experts.2.up_proj",
                         "model.layers.61.mlp.experts.17.up_proj", "re:.*mlp.gate$", "re:.*experts.5.*", "mlp.experts"};
  CHECK(config["quantization_config"][key] == expected);
  CHECK(config["quantization_config"]["quant_method"] == "x");
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], Catch::Matchers::Contains("experts.5"));
}

TEST_CASE("entries that name an expert ambiguously are refused", "[rewrite]") {
  const char* entry = GENERATE("experts.3.down_proj", "model.layers.*.mlp.experts.3.up_proj", "model.layers.0.mlp.experts.3*",
                               "model.layers.0.mlp.experts.7.up_proj");
  CAPTURE(entry);
  TempFolder folder;
  CHECK_THROWS_AS(rewritten(folder, {}, [&](Json& json) { json["quantization_config"] = {{"ignore", {entry}}}; }),
                  InvalidInput);
}

TEST_CASE("router drift is told where gates are not normalised", "[rewrite]") {
  std::vector<std::string> warnings;
  TempFolder folder;
  rewritten(folder, {.family = "olmoe", .normalised = false}, kNoEdit, &warnings);
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], Catch::Matchers::Contains("Router drift"));
  TempFolder other;
  rewritten(other, {.family = "olmoe", .normalised = true}, kNoEdit, &warnings);
  CHECK(warnings.empty());
}
