// Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): a shared expert with a sigmoid gate, biases on q, k and v.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> shared_expert_rules() {
  using enum Axis;
  return {
      {Role::shared_gate, "model.layers.{layer}.mlp.shared_expert.gate_proj.weight", {S, H}},
      {Role::shared_up, "model.layers.{layer}.mlp.shared_expert.up_proj.weight", {S, H}},
      {Role::shared_down, "model.layers.{layer}.mlp.shared_expert.down_proj.weight", {H, S}},
      {Role::shared_router, "model.layers.{layer}.mlp.shared_expert_gate.weight", {one, H}},
  };
}

}  // namespace

const Family qwen2_moe{
    .name = "qwen2_moe",
    .source = "Qwen1.5-MoE-A2.7B config.json and weight index; transformers 5 Qwen2MoeForCausalLM",
    .architectures = {"Qwen2MoeForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "shared_expert_intermediate_size",
    .dense_width_key = "intermediate_size",
    .sparse_step_and_list = true,
    .router_score = RouterScore::softmax,
    .normalise_key = "norm_topk_prob",
    .gates_in_activation_dtype = true,
    .query_key_norm = QueryKeyNorm::none,
    .clip_key = "",
    .window = WindowRule::layer_types_when_enabled,
    .rope_theta = 10000.0,
    .tensors = join({decoder_rules(), dense_mlp_rules(), mlp_expert_rules(), shared_expert_rules()}),
};

}  // namespace moetrim::family_list
