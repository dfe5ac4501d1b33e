// ERNIE 4.5.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/router_keys.h"

namespace moetrim::gguf_list {

namespace {

void more(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  add_leading_dense(source, keys);
  keys.whole("interleave_moe_layer_step", 1);
  keys.whole("expert_feed_forward_length", model.expert_width);
  if (model.shared_width > 0) keys.whole("expert_shared_feed_forward_length", model.shared_width);
}

}  // namespace

const GgufMapping ernie4_5_moe{
    .architecture = "ernie4_5-moe",
    .tensors = join({skeleton(), attention(), {{Role::output_bias, "blk.{}.attn_output.bias"}}, dense_mlp(), experts(),
                     selection_bias(), shared_experts()}),
    .keys = {{"expert_shared_count", {"moe_num_shared_experts"}}},
    .normalises_gates = true,
    .dense_layers = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
