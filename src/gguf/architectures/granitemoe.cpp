// Granite 3 MoE: llama's attention, and multipliers on embedding, attention, residual and logits.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/rope_tensors.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

namespace {

void more(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  keys.whole("rope.dimension_count", model.head_dim);
  keys.real("attention.scale", model.attention_scale);
  keys.real("embedding_scale", model.embedding_scale);
  keys.real("residual_scale", model.residual_scale);
  keys.real("logit_scale", 1 / model.logit_scale);  // llama.cpp divides by it
  add_llama3_factors(source, keys);
}

}  // namespace

const GgufMapping granitemoe{
    .architecture = "granitemoe",
    .tensors = join({skeleton(), neighbour_attention(), {{Role::output_bias, "blk.{}.attn_output.bias"}}, experts()}),
    .normalises_gates = true,
    .ropes = {RopeKind::standard, RopeKind::linear, RopeKind::yarn, RopeKind::llama3},
    .more = more,
};

}  // namespace moetrim::gguf_list
