// Phi-3.5-MoE: LayerNorm with biases, LongRoPE. llama.cpp has no SparseMixer: it takes the two largest probabilities.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/rope_tensors.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

namespace {

Rules own() {
  return {
      {Role::final_norm_bias, "output_norm.bias"},
      {Role::head_bias, "output.bias"},
      {Role::input_norm_bias, "blk.{}.attn_norm.bias"},
      {Role::mlp_norm_bias, "blk.{}.ffn_norm.bias"},
      {Role::output_bias, "blk.{}.attn_output.bias"},
  };
}

void more(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  for (const Role role : {Role::head_bias, Role::output_bias}) {
    const bool there = role == Role::head_bias ? static_cast<bool>(model[role]) : static_cast<bool>(model.layer[0][role]);
    if (!there) source.refuse("there are no biases on attention's output and the head; llama.cpp's phimoe expects both");
  }
  keys.whole("rope.dimension_count", model.head_dim);
  add_longrope_factors(source, keys);
  keys.notes.emplace_back("llama.cpp chooses and weighs experts by plain softmax where Phi-3.5-MoE has SparseMixer: its answers differ from "
                          "transformers' for every token, whoever writes the file.");
}

}  // namespace

const GgufMapping phimoe{
    .architecture = "phimoe",
    .tensors = join({skeleton(), own(), attention(), experts()}),
    .keys = {{"attention.sliding_window", {"sliding_window"}}},
    .normalises_gates = true,
    .needs_head = true,
    .square_queries = true,
    .ropes = {RopeKind::standard, RopeKind::longrope},
    .more = more,
};

}  // namespace moetrim::gguf_list
