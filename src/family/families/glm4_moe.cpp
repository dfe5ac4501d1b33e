// GLM-4.5: the router of DeepSeek-V3 beside grouped-query attention that rotates half of each head.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family glm4_moe{
    .name = "glm4_moe",
    .covers = "GLM-4.5, GLM-4.5-Air, GLM-4.6",
    .source = "GLM-4.5-Air config.json and weight index; transformers 5 Glm4MoeForCausalLM",
    .architectures = {"Glm4MoeForCausalLM"},
    .expert_count_keys = {"n_routed_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "moe_intermediate_size",
    .shared_count_key = "n_shared_experts",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::after_dense,
    .router = deepseek_v3_router(/*normalise_default=*/true),
    .attention = {.query_key_norm = QueryKeyNorm::per_head, .query_key_norm_key = "use_qk_norm", .rotated_part = 0.5},
    .mtp_count_key = "num_nextn_predict_layers",
    .tensors = join({decoder_rules(), optional(query_key_norm_rules({Axis::D}, {Axis::D})), dense_mlp_rules(),
                     mlp_expert_rules(), selection_bias_rules(), shared_expert_rules("shared_experts"),
                     appended_mtp_rules()}),
};

}  // namespace moetrim::family_list
