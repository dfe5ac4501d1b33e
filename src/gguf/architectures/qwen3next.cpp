// Qwen3-Next. Its grouped projections are put apart, into queries, keys and values of all heads, and z.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/delta_net.h"

namespace moetrim::gguf_list {

namespace {

Rules delta_net() {
  return {
      {Role::delta_qkvz, "blk.{}.attn_qkv.weight", GgufOperation::delta_qkv},
      {Role::delta_qkvz, "blk.{}.attn_gate.weight", GgufOperation::delta_z},
      {Role::delta_ba, "blk.{}.ssm_ba.weight"},
      {Role::delta_conv, "blk.{}.ssm_conv1d.weight", GgufOperation::squeezed},
      {Role::delta_time_bias, "blk.{}.ssm_dt.bias"},
      {Role::delta_decay, "blk.{}.ssm_a", GgufOperation::negated_exponential},
      {Role::delta_output, "blk.{}.ssm_out.weight"},
  };
}

}  // namespace

const GgufMapping qwen3next{
    .architecture = "qwen3next",
    .tensors = join({delta_net_skeleton(), delta_net()}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}},
             {"expert_shared_feed_forward_length", {"shared_expert_intermediate_size"}},
             {"full_attention_interval", {"full_attention_interval"}}},
    .normalises_gates = true,
    .partial_rotary = true,
    .more = add_delta_net,
};

}  // namespace moetrim::gguf_list
