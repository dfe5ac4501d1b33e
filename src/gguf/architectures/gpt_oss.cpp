// gpt-oss.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/router_keys.h"

namespace moetrim::gguf_list {

namespace {

Rules own() {
  return {
      {Role::output_bias, "blk.{}.attn_output.bias"},
      {Role::sinks, "blk.{}.attn_sinks.weight"},
      {Role::router_bias, "blk.{}.ffn_gate_inp.bias"},
      {Role::fused_gate_up_bias, "blk.{}.ffn_gate_exps.bias", GgufOperation::gate_half},
      {Role::fused_gate_up_bias, "blk.{}.ffn_up_exps.bias", GgufOperation::up_half},
      {Role::fused_down_bias, "blk.{}.ffn_down_exps.bias"},
  };
}

/// llama.cpp has the same window in every second layer, from the first on.
std::int64_t window_of(const GgufSource& source) {
  const Model& model = *source.model;
  const std::int64_t window = model.layer.front().window;
  for (std::size_t i = 0; i < model.layer.size(); ++i) {
    if (window > 0 && model.layer[i].window == (i % 2 == 0 ? window : 0)) continue;
    source.refuse(fmt::format("layer {} looks back {} tokens (0: all; layer_types, sliding_window); llama.cpp's gpt-oss has "
                              "one window, in layers 0, 2, 4 and so on", i, model.layer[i].window));
  }
  return window;
}

constexpr std::string_view kRounds =
    "llama.cpp rounds the range in which YaRN blends frequencies to whole dimensions, which this model does not (truncate "
    "is false in its rope scaling): answers differ, the more the longer the text, as they do with any GGUF of it.";

void more(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  if (model.swiglu_limit != 7.0 || model.swiglu_alpha != 1.702) {
    source.refuse(fmt::format("swiglu_limit is {} and swiglu_alpha {}; llama.cpp's gpt-oss has 7 and 1.702",
                              model.swiglu_limit, model.swiglu_alpha));
  }
  keys.whole("attention.sliding_window", window_of(source));
  keys.whole("expert_feed_forward_length", model.expert_width);
  if (model.rope.kind == RopeKind::yarn && !model.rope.truncate) {
    keys.notes.emplace_back(kRounds);
  }
}

}  // namespace

const GgufMapping gpt_oss{
    .architecture = "gpt-oss",
    .tensors = join({post_norm_skeleton(), attention(), experts(), own()}),
    .normalises_gates = true,
    .windows = true,
    .needs_head = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
