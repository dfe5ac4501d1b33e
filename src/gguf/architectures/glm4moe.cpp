// GLM-4.5 and GLM-4.6, with the block that predicts one token further.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/router_keys.h"

namespace moetrim::gguf_list {

namespace {

void more(const GgufSource& source, GgufKeys& keys) {
  check_shared_experts(source, "glm4moe");
  add_leading_dense(source, keys);
  add_gating(source, keys);
  add_groups(source, keys);
  add_mtp(source, keys);
}

}  // namespace

const GgufMapping glm4moe{
    .architecture = "glm4moe",
    .tensors = join({post_norm_skeleton(), attention(), query_key_norms(), dense_mlp(), experts(), selection_bias(),
                     shared_experts(), next_tokens()}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}}, {"expert_shared_count", {"n_shared_experts"}}},
    .scales_gates = true,
    .dense_layers = true,
    .partial_rotary = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
