// Qwen3.5-MoE, the language model. llama.cpp repeats key heads as a whole to match the value heads, so these are put in the
// order in which they meet their key heads then.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/delta_net.h"
#include "gguf/architectures/rope_tensors.h"

namespace moetrim::gguf_list {

namespace {

Rules delta_net() {
  return {
      {Role::delta_qkv, "blk.{}.attn_qkv.weight", GgufOperation::tiled_qkv},
      {Role::delta_z, "blk.{}.attn_gate.weight", GgufOperation::tiled_rows},
      {Role::delta_b, "blk.{}.ssm_beta.weight", GgufOperation::tiled_rows},
      {Role::delta_a, "blk.{}.ssm_alpha.weight", GgufOperation::tiled_rows},
      {Role::delta_conv, "blk.{}.ssm_conv1d.weight", GgufOperation::tiled_qkv},
      {Role::delta_time_bias, "blk.{}.ssm_dt.bias", GgufOperation::tiled_rows},
      {Role::delta_decay, "blk.{}.ssm_a", GgufOperation::tiled_decay},
      {Role::delta_output, "blk.{}.ssm_out.weight", GgufOperation::tiled_columns},
  };
}

void more(const GgufSource& source, GgufKeys& keys) {
  add_delta_net(source, keys);
  add_rope_sections(source, keys, {11, 11, 10});
}

}  // namespace

const GgufMapping qwen35moe{
    .architecture = "qwen35moe",
    .tensors = join({delta_net_skeleton(), delta_net()}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}},
             {"expert_shared_feed_forward_length", {"shared_expert_intermediate_size"}},
             {"full_attention_interval", {"full_attention_interval"}}},
    .normalises_gates = true,
    .partial_rotary = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
