// Hunyuan: softmax router in fp32, a shared MLP, queries and keys normalised after they are rotated.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> own_rules() {
  using enum Axis;
  return {
      {Role::query_norm, "model.layers.{layer}.self_attn.query_layernorm.weight", {D}},
      {Role::key_norm, "model.layers.{layer}.self_attn.key_layernorm.weight", {D}},
      {Role::router, "model.layers.{layer}.mlp.gate.wg.weight", {E, H}},
  };
}

}  // namespace

const Family hunyuan_v1_moe{
    .name = "hunyuan_v1_moe",
    .covers = "Hunyuan-A13B",
    .source = "Hunyuan-A13B-Instruct config.json and weight index; transformers 5 HunYuanMoEV1ForCausalLM",
    .architectures = {"HunYuanMoEV1ForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .experts_per_token_keys = {"moe_topk", "num_experts_per_tok"},
    .expert_width_key = "intermediate_size",
    .shared_width_key = "intermediate_size",
    .router = {.logits_in_fp32 = true},
    .attention = {.query_key_norm = QueryKeyNorm::per_head_after_rope},
    .tensors = join({decoder_rules(), own_rules(), expert_rules(), fused_rules(), shared_expert_rules("shared_mlp")}),
};

}  // namespace moetrim::family_list
