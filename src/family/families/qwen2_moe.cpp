// Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): a shared expert with a sigmoid gate, biases on q, k and v.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family qwen2_moe{
    .name = "qwen2_moe",
    .covers = "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    .source = "Qwen1.5-MoE-A2.7B config.json and weight index; transformers 5 Qwen2MoeForCausalLM",
    .architectures = {"Qwen2MoeForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "shared_expert_intermediate_size",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::sparse_step_and_list,
    .router = {.normalise = NormaliseGates::by_config, .gates_in_activation_dtype = true},
    .attention = {.window = WindowRule::layer_types_when_enabled},
    .tensors = join({decoder_rules(), dense_mlp_rules(), mlp_expert_rules(), gated_shared_expert_rules()}),
};

}  // namespace moetrim::family_list
