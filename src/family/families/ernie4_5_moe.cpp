// Ernie 4.5: softmax router with a selection bias of shape [1, E], neighbouring values of a head rotated together.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> statics_rules() {
  using enum Axis;
  return {
      {Role::selection_bias, "model.layers.{layer}.mlp.moe_statics.e_score_correction_bias", {one, E}},
      {Role::selection_bias, "model.layers.{layer}.mlp.gate.moe_statics.e_score_correction_bias", {one, E}},
  };
}

}  // namespace

const Family ernie4_5_moe{
    .name = "ernie4_5_moe",
    .covers = "ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B",
    .source = "ERNIE-4.5-21B-A3B-PT config.json and weight index; transformers 5 Ernie4_5_MoeForCausalLM",
    .architectures = {"Ernie4_5_MoeForCausalLM"},
    .expert_count_keys = {"moe_num_experts", "num_experts"},
    .experts_per_token_keys = {"moe_k", "num_experts_per_tok"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "moe_intermediate_size",
    .shared_count_key = "moe_num_shared_experts",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::interval,
    .router = {.logits_in_fp32 = true, .gates_in_activation_dtype = true},
    .attention = {.pairs = RopePairs::neighbours, .rope_in_fp32 = true, .rope_theta = 500000.0},
    // The published blocks for further tokens are dense.
    .untouched = {"model.mtp_"},
    .tensors = join({decoder_rules(), dense_mlp_rules(), mlp_expert_rules(), statics_rules(),
                     shared_expert_rules("shared_experts")}),
};

}  // namespace moetrim::family_list
