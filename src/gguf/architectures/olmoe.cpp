// OLMoE. As many key as query heads, no clamp of q, k, v; gates are never divided by their sum.

#include <fmt/format.h>

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

namespace {

void check(const GgufSource& source, GgufKeys&) {
  const Model& model = *source.model;
  if (model.clip != 0) source.refuse(fmt::format("clip_qkv is {}; llama.cpp's olmoe does not clamp q, k and v", model.clip));
  if (model.key_value_heads != model.heads) {
    source.refuse(fmt::format("there are {} key heads for {} query heads; llama.cpp's olmoe expects as many",
                              model.key_value_heads, model.heads));
  }
}

}  // namespace

const GgufMapping olmoe{
    .architecture = "olmoe",
    .tensors = join({skeleton(), attention(), query_key_norms(), experts()}),
    .normalises_gates = false,
    .needs_head = true,
    .square_queries = true,
    .more = check,
};

}  // namespace moetrim::gguf_list
