// Qwen3-MoE. Every layer has experts, and gates always sum to one.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

const GgufMapping qwen3moe{
    .architecture = "qwen3moe",
    .tensors = join({skeleton(), attention(), query_key_norms(), experts()}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}}},
    .normalises_gates = true,
};

}  // namespace moetrim::gguf_list
