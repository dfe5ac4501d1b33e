// Mixtral: w1 is gate, w3 is up, w2 is down; gates always sum to one and stay in fp32.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> block_sparse_rules() {
  using enum Axis;
  return {
      {Role::router, "model.layers.{layer}.block_sparse_moe.gate.weight", {E, H}},
      {Role::expert_gate, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight", {F, H}},
      {Role::expert_up, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight", {F, H}},
      {Role::expert_down, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight", {H, F}},
      // The names that transformers 5 has in memory, met in checkpoints that were saved fused.
      {Role::router, "model.layers.{layer}.mlp.gate.weight", {E, H}},
      {Role::fused_gate_up, "model.layers.{layer}.mlp.experts.gate_up_proj", {E, F2, H}},
      {Role::fused_down, "model.layers.{layer}.mlp.experts.down_proj", {E, H, F}},
  };
}

}  // namespace

const Family mixtral{
    .name = "mixtral",
    .source = "Mixtral-8x7B-v0.1 config.json and weight index; transformers 5 MixtralForCausalLM",
    .architectures = {"MixtralForCausalLM"},
    .expert_count_keys = {"num_local_experts", "num_experts"},
    .expert_width_key = "intermediate_size",
    .shared_width_key = "",
    .dense_width_key = "",
    .sparse_step_and_list = false,
    .router_score = RouterScore::softmax,
    .normalise_key = "",
    .gates_in_activation_dtype = false,
    .query_key_norm = QueryKeyNorm::none,
    .clip_key = "",
    .window = WindowRule::all_layers,
    .rope_theta = 1000000.0,
    .tensors = join({decoder_rules(), block_sparse_rules()}),
};

}  // namespace moetrim::family_list
