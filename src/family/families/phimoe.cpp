// Phi-3.5-MoE: SparseMixer routing, LayerNorm with a bias, and a bias on the output head.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> own_rules() {
  using enum Axis;
  return {
      {Role::final_norm_bias, "model.norm.bias", {H}},
      {Role::head_bias, "lm_head.bias", {V}, true},
      {Role::input_norm_bias, "model.layers.{layer}.input_layernorm.bias", {H}},
      {Role::mlp_norm_bias, "model.layers.{layer}.post_attention_layernorm.bias", {H}},
      {Role::router, "model.layers.{layer}.mlp.router.weight", {E, H}},
  };
}

}  // namespace

const Family phimoe{
    .name = "phimoe",
    .covers = "Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE",
    .source = "Phi-3.5-MoE-instruct config.json and weight index; transformers 5 PhimoeForCausalLM",
    .architectures = {"PhimoeForCausalLM"},
    .expert_count_keys = {"num_local_experts", "num_experts"},
    .expert_width_key = "intermediate_size",
    .router = {.score = RouterScore::sparsemixer, .gates_in_activation_dtype = true},
    .attention = {.window = WindowRule::all_layers},
    .norm = NormKind::layer,
    .tensors = join({decoder_rules(), own_rules(), block_sparse_moe_rules(), fused_rules()}),
};

}  // namespace moetrim::family_list
