// DeepSeek-V3: latent attention, sigmoid router with a selection bias, groups chosen by their two best experts.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family deepseek_v3{
    .name = "deepseek_v3",
    .aliases = {"kimi_k2"},
    .covers = "DeepSeek-V3, DeepSeek-R1, DeepSeek-V3.1, Kimi-K2, Moonlight-16B-A3B",
    .source = "DeepSeek-V3 config.json and weight index; transformers 5 DeepseekV3ForCausalLM",
    .architectures = {"DeepseekV3ForCausalLM"},
    .expert_count_keys = {"n_routed_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "moe_intermediate_size",
    .shared_count_key = "n_shared_experts",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::after_dense,
    .router = deepseek_v3_router(/*normalise_default=*/true),
    .attention = {.latent = true, .pairs = RopePairs::neighbours},
    .mtp_count_key = "num_nextn_predict_layers",
    .tensors = join({skeleton_rules(), latent_attention_rules(), dense_mlp_rules(), mlp_expert_rules(),
                     selection_bias_rules(), shared_expert_rules("shared_experts"), appended_mtp_rules()}),
};

}  // namespace moetrim::family_list
