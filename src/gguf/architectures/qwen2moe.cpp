// Qwen2-MoE. Every layer has experts and a shared expert with a gate; gates are never divided by their sum.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

const GgufMapping qwen2moe{
    .architecture = "qwen2moe",
    .tensors = join({skeleton(), attention(), experts(), shared_experts(),
                     {{Role::shared_router, "blk.{}.ffn_gate_inp_shexp.weight"}}}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}},
             {"expert_shared_feed_forward_length", {"shared_expert_intermediate_size"}}},
    .normalises_gates = false,
    .needs_head = true,
    .square_queries = true,
};

}  // namespace moetrim::gguf_list
