// Qwen3-Next: three gated delta nets to one attention layer with an output gate, a shared expert with a sigmoid gate.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> text_rules() {
  return join({skeleton_rules(), gated_attention_rules(), delta_net_rules(/*grouped=*/true), dense_mlp_rules(),
               mlp_expert_rules(), gated_shared_expert_rules()});
}

}  // namespace

const Family qwen3_next{
    .name = "qwen3_next",
    .covers = "Qwen3-Next-80B-A3B",
    .source = "Qwen3-Next-80B-A3B config.json and weight index; transformers 5 Qwen3NextForCausalLM",
    .architectures = {"Qwen3NextForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "shared_expert_intermediate_size",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::sparse_step_and_list,
    .router = {.normalise = NormaliseGates::by_config, .normalise_default = true, .gates_in_activation_dtype = true},
    .attention = {.delta_net = true, .query_key_norm = QueryKeyNorm::per_head, .output_gate = true, .rotated_part = 0.25},
    .norm = NormKind::rms_one_plus,
    .mtp_count_key = "mtp_num_hidden_layers",
    .tensors = join({text_rules(), separate_mtp_rules(text_rules())}),
};

}  // namespace moetrim::family_list
