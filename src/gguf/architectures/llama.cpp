// Mixtral, which is llama.cpp's llama with experts. Rotation pairs neighbours.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/rope_tensors.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

namespace {

void more(const GgufSource& source, GgufKeys& keys) {
  keys.whole("rope.dimension_count", source.model->head_dim);
  add_llama3_factors(source, keys);
}

}  // namespace

const GgufMapping llama{
    .architecture = "llama",
    .tensors = join({skeleton(), neighbour_attention(), {{Role::output_bias, "blk.{}.attn_output.bias"}}, experts()}),
    .normalises_gates = true,
    .ropes = {RopeKind::standard, RopeKind::linear, RopeKind::yarn, RopeKind::llama3},
    .more = more,
};

}  // namespace moetrim::gguf_list
