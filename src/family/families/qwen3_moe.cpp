// Qwen3-MoE: softmax router, no shared expert, queries and keys normalised per head.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family qwen3_moe{
    .name = "qwen3_moe",
    .source = "Qwen3-30B-A3B config.json and weight index; transformers 5 Qwen3MoeForCausalLM",
    .architectures = {"Qwen3MoeForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "",
    .dense_width_key = "intermediate_size",
    .sparse_step_and_list = true,
    .router_score = RouterScore::softmax,
    .normalise_key = "norm_topk_prob",
    .gates_in_activation_dtype = true,
    .query_key_norm = QueryKeyNorm::per_head,
    .clip_key = "",
    .window = WindowRule::when_enabled,
    .rope_theta = 10000.0,
    .tensors = join({decoder_rules(), query_key_norm_rules({Axis::D}, {Axis::D}), dense_mlp_rules(),
                     mlp_expert_rules()}),
};

}  // namespace moetrim::family_list
