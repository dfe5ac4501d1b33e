// dots.llm1.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/router_keys.h"

namespace moetrim::gguf_list {

namespace {

void more(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  if (model.key_value_heads != model.heads) {
    source.refuse(fmt::format("num_key_value_heads is {} beside {} heads; llama.cpp's dots1 has as many of them",
                              model.key_value_heads, model.heads));
  }
  check_shared_experts(source, "dots1");
  add_leading_dense(source, keys);
  add_gating(source, keys);
  add_groups(source, keys);
}

}  // namespace

const GgufMapping dots1{
    .architecture = "dots1",
    .tensors = join({skeleton(), attention(), query_key_norms(), dense_mlp(), experts(), selection_bias(),
                     shared_experts()}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}}, {"expert_shared_count", {"n_shared_experts"}}},
    .scales_gates = true,
    .dense_layers = true,
    .needs_head = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
