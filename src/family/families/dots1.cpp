// dots.llm1: the router of DeepSeek-V3, queries and keys normalised per head.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family dots1{
    .name = "dots1",
    .covers = "dots.llm1",
    .source = "dots.llm1.inst config.json; transformers 5 Dots1ForCausalLM",
    .architectures = {"Dots1ForCausalLM"},
    .expert_count_keys = {"n_routed_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "moe_intermediate_size",
    .shared_count_key = "n_shared_experts",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::after_dense,
    .router = deepseek_v3_router(/*normalise_default=*/false),
    .attention = {.query_key_norm = QueryKeyNorm::per_head, .window = WindowRule::late_layer_types},
    .tensors = join({decoder_rules(), query_key_norm_rules({Axis::D}, {Axis::D}), dense_mlp_rules(), mlp_expert_rules(),
                     selection_bias_rules(), shared_expert_rules("shared_experts")}),
};

}  // namespace moetrim::family_list
