// DeepSeek-V2: latent attention, softmax router whose gates are not normalised, groups chosen by their best expert.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family deepseek_v2{
    .name = "deepseek_v2",
    .covers = "DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2",
    .source = "DeepSeek-V2-Lite config.json and weight index; transformers 5 DeepseekV2ForCausalLM",
    .architectures = {"DeepseekV2ForCausalLM"},
    .expert_count_keys = {"n_routed_experts", "num_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "moe_intermediate_size",
    .shared_count_key = "n_shared_experts",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::after_dense,
    .router = {.normalise = NormaliseGates::never, .logits_in_fp32 = true, .scaled = true, .groups = GroupRule::max},
    .attention = {.latent = true, .pairs = RopePairs::neighbours, .rope_in_fp32 = true},
    .tensors = join({skeleton_rules(), latent_attention_rules(), dense_mlp_rules(), mlp_expert_rules(),
                     shared_expert_rules("shared_experts")}),
};

}  // namespace moetrim::family_list
