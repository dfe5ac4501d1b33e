// Phi-3.5-MoE: biases everywhere, LongRoPE. llama.cpp has neither its LayerNorm nor SparseMixer, so nothing that it loads as
// phimoe computes what transformers computes.

#include <array>

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
  const std::array<std::string_view, 1> window{"sliding_window"};
  if (source.find(window) == nullptr) keys.whole("attention.sliding_window", 0);
  keys.notes.emplace_back("llama.cpp's phimoe normalises without taking the mean off, and weighs experts by plain softmax, "
                          "where the model has LayerNorm and SparseMixer: its probabilities differ from transformers' whoever "
                          "writes the file. Measure the result.");
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
