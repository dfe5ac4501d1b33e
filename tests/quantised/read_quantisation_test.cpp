// quantization_config of config.json: what it means, and what is refused.
#include "given.h"
#include "moetrim/quantised.h"
#include "quantised/given_weight.h"
#include "testing.h"

using namespace moetrim;
using given::meaning;
using given::thrown_by;
using Json = nlohmann::ordered_json;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a model without quantization_config has no method") {
  CHECK(read_quantisation(Json::object(), "config.json").method.empty());
  CHECK(read_quantisation(Json{{"quantization_config", nullptr}}, "config.json").method.empty());
}

TEST_CASE("the configuration is found in its three places") {
  const Json fp8{{"quant_method", "fp8"}};
  CHECK(read_quantisation({{"quantization_config", fp8}}, "c").method == "fp8");
  CHECK(read_quantisation({{"text_config", {{"quantization_config", fp8}}}}, "c").method == "fp8");
  CHECK(read_quantisation({{"compression_config", fp8}}, "c").method == "fp8");
  CHECK(read_quantisation({{"quantization_config", fp8}, {"text_config", {{"quantization_config", fp8}}}}, "c").method ==
        "fp8");
  const Json two{{"quantization_config", fp8}, {"text_config", {{"quantization_config", {{"quant_method", "awq"}}}}}};
  CHECK(contains(thrown_by([&] { read_quantisation(two, "c"); }), "InvalidInput: c: two quantization_config that differ"));
}

TEST_CASE("fields of every method") {
  const Quantisation gptq = meaning(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false})");
  CHECK(gptq.bits == 4);
  CHECK(gptq.group_size == 128);
  CHECK(gptq.zeros_minus_one);
  CHECK(gptq.obstacle.empty());
  CHECK_FALSE(meaning(R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"})").zeros_minus_one);
  CHECK(meaning(R"({"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}})").varies);
  const Quantisation awq = meaning(R"({"quant_method": "awq", "w_bit": 4, "q_group_size": -1, "version": "GEMM"})");
  CHECK((awq.bits == 4 && awq.group_size == -1 && awq.format == "gemm" && awq.obstacle.empty()));
  const Quantisation fp8 = meaning(R"({"quant_method": "fp8", "weight_block_size": [64, 32]})");
  CHECK((fp8.block_rows == 64 && fp8.block_cols == 32));
  CHECK(meaning(R"({"quant_method": "fp8"})").block_rows == 128);
  CHECK(meaning(R"({"quant_method": "fp8", "weight_block_size": null})").block_rows == 0);
  CHECK(meaning(R"({"config_groups": {}})").method == "compressed-tensors");
  CHECK(meaning(R"({"quant_algo": "NVFP4"})").method == "modelopt");
}

TEST_CASE("groups of compressed-tensors") {
  const Quantisation got = meaning(R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
      "a": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": false}},
      "b": {"weights": null, "targets": []},
      "c": {"weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x64"}}}})");
  REQUIRE(got.groups.size() == 2);
  CHECK((got.groups[0].bits == 4 && got.groups[0].group_size == 32 && !got.groups[0].symmetric));
  CHECK((got.groups[1].type == "float" && got.groups[1].block_rows == 128 && got.groups[1].block_cols == 64));
}

TEST_CASE("a method that nobody knows is read, and said when values are wanted") {
  const Quantisation got = meaning(R"({"quant_method": "gguff", "bits": "many"})");
  CHECK(got.method == "gguff");
  given::Weight weight;
  weight.with(".weight", Dtype::bf16, {2, 2});
  const std::string error = thrown_by([&] { packing_of(weight.weight, got, 2, 2); });
  CHECK(contains(error, "InvalidInput: config.json: quantization_config: quant_method \"gguff\" is not known"));
  CHECK(contains(error, "awq, compressed-tensors, fbgemm_fp8, fp8, gptq, modelopt, mxfp4, mxfp8"));
}

TEST_CASE("a known method in a form that cannot be computed says why") {
  const std::string config = GENERATE(
      R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"})", R"({"quant_method": "gptq", "pack_dtype": "int64"})",
      R"({"quant_method": "gptq", "is_marlin_format": true})", R"({"quant_method": "awq", "version": "gemv"})",
      R"({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"})",
      R"({"quant_method": "awq", "backend": "llm-awq"})", R"({"quant_method": "compressed-tensors", "format": "marlin-24"})",
      R"({"quant_method": "compressed-tensors", "config_groups": {"W4A16": ["Linear"]}})",
      R"({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}})",
      R"({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}})");
  INFO(config);
  const Quantisation got = meaning(config);
  CHECK_FALSE(got.obstacle.empty());
  given::Weight weight;
  weight.with(".weight", Dtype::bf16, {2, 2});
  CHECK(contains(thrown_by([&] { packing_of(weight.weight, got, 2, 2); }), got.obstacle));
}

TEST_CASE("hostile fields are refused with their name") {
  const auto [config, problem] = GENERATE(table<std::string, std::string>({
      {R"([])", "expected an object"},
      {R"({"quant_method": 3})", "quant_method: expected a non-empty string"},
      {R"({"quant_method": "gptq", "bits": "4"})", "bits: expected an integer"},
      {R"({"quant_method": "gptq", "bits": 0})", "bits: expected an integer from 1"},
      {R"({"quant_method": "gptq", "group_size": -2})", "group_size: expected an integer from -1"},
      {R"({"quant_method": "gptq", "group_size": 1e30})", "group_size: expected an integer"},
      {R"({"quant_method": "awq", "version": []})", "version: expected a non-empty string"},
      {R"({"quant_method": "fp8", "weight_block_size": [128]})", "weight_block_size: expected two integers"},
      {R"({"quant_method": "fp8", "weight_block_size": [0, 128]})", "weight_block_size: expected two integers"},
      {R"({"quant_method": "fp8", "weight_block_size": [128, 18446744073709551615]})", "weight_block_size: expected two"},
      {R"({"quant_method": "fp8", "weight_block_size": "128x"})", "weight_block_size: expected two integers"},
      {R"({"quant_method": "compressed-tensors", "config_groups": 1})", "config_groups: expected an object"},
      {R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": []}}}})",
       "config_groups.g: weights.num_bits: expected an integer"},
  }));
  INFO(config);
  const std::string error = thrown_by([&, text = config] { meaning(text); });
  CHECK(contains(error, "InvalidInput: config.json: quantization_config"));
  CHECK(contains(error, problem));
}
