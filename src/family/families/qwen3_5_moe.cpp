// Qwen3.5-MoE: as Qwen3-Next, with the delta net's projections apart and a vision tower that is copied.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> text_rules() {
  return join({skeleton_rules(), gated_attention_rules(), delta_net_rules(/*grouped=*/false), mlp_expert_rules(),
               transposed_fused_rules(), gated_shared_expert_rules()});
}

}  // namespace

const Family qwen3_5_moe{
    .name = "qwen3_5_moe",
    .aliases = {"qwen3_5_moe_text"},
    .covers = "Qwen3.5-35B-A3B, Qwen3.5-122B-A10B, Qwen3.5-397B-A17B (language model; vision tensors copied)",
    .source = "transformers 5 Qwen3_5MoeForConditionalGeneration",
    .architectures = {"Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "shared_expert_intermediate_size",
    .router = {.gates_in_activation_dtype = true},
    .attention = {.delta_net = true, .query_key_norm = QueryKeyNorm::per_head, .output_gate = true, .rotated_part = 0.25},
    .norm = NormKind::rms_one_plus,
    .mtp_count_key = "mtp_num_hidden_layers",
    .untouched = {"model.visual."},
    .tensors = join({text_rules(), respelled(text_rules(), "model.", "model.language_model."),
                     separate_mtp_rules(text_rules())}),
};

}  // namespace moetrim::family_list
