// Mixtral: w1 is gate, w3 is up, w2 is down; gates always sum to one and stay in fp32.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family mixtral{
    .name = "mixtral",
    .covers = "Mixtral-8x7B, Mixtral-8x22B",
    .source = "Mixtral-8x7B-v0.1 config.json and weight index; transformers 5 MixtralForCausalLM",
    .architectures = {"MixtralForCausalLM"},
    .expert_count_keys = {"num_local_experts", "num_experts"},
    .expert_width_key = "intermediate_size",
    .attention = {.window = WindowRule::all_layers, .rope_theta = 1000000.0},
    // Checkpoints that were saved fused have the names that transformers 5 has in memory.
    .tensors = join({decoder_rules(), block_sparse_moe_rules(), router_rules(), fused_rules()}),
};

}  // namespace moetrim::family_list
