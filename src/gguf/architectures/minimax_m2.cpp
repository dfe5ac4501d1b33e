// MiniMax-M2.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/router_keys.h"

namespace moetrim::gguf_list {

const GgufMapping minimax_m2{
    .architecture = "minimax-m2",
    .tensors = join({skeleton(), attention(), query_key_norms(), experts(), selection_bias()}),
    .keys = {{"expert_feed_forward_length", {"intermediate_size"}}},
    .normalises_gates = true,
    .partial_rotary = true,
    .needs_head = true,
    .more = add_gating,
};

}  // namespace moetrim::gguf_list
