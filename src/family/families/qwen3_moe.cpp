// Qwen3-MoE: softmax router, no shared expert, queries and keys normalised per head.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family qwen3_moe{
    .name = "qwen3_moe",
    .covers = "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    .source = "Qwen3-30B-A3B config.json and weight index; transformers 5 Qwen3MoeForCausalLM",
    .architectures = {"Qwen3MoeForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::sparse_step_and_list,
    .router = {.normalise = NormaliseGates::by_config, .gates_in_activation_dtype = true},
    .attention = {.query_key_norm = QueryKeyNorm::per_head, .window = WindowRule::when_enabled},
    .tensors = join({decoder_rules(), query_key_norm_rules({Axis::D}, {Axis::D}), dense_mlp_rules(), mlp_expert_rules()}),
};

}  // namespace moetrim::family_list
