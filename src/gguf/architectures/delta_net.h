// What the architectures with gated delta nets have in common.
#pragma once

#include <vector>

#include <fmt/format.h>

#include "gguf/architectures/router_keys.h"

namespace moetrim::gguf_list {

/// Attention with an output gate, beside delta nets; norms store weight - 1. A shared expert has a gate.
inline Rules delta_net_skeleton() {
  const Rules norms = with(join({post_norm_skeleton(), query_key_norms(), next_tokens()}), GgufOperation::plus_one,
                           {Role::final_norm, Role::input_norm, Role::mlp_norm, Role::query_norm, Role::key_norm,
                            Role::mtp_embedding_norm, Role::mtp_hidden_norm, Role::mtp_final_norm});
  return join({norms, attention(), experts(), shared_experts(), {{Role::shared_router, "blk.{}.ffn_gate_inp_shexp.weight"},
                                                                 {Role::delta_norm, "blk.{}.ssm_norm.weight"}}});
}

/// @throws InvalidInput for what llama.cpp has constants for.
inline void add_delta_net(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  const DeltaSizes& delta = model.delta;
  if (delta.key_dim != delta.value_dim) {
    source.refuse(fmt::format("linear_key_head_dim is {} and linear_value_head_dim {}; in llama.cpp they are equal",
                              delta.key_dim, delta.value_dim));
  }
  if (model.norm_epsilon != 1e-6) {
    source.refuse(fmt::format("rms_norm_eps is {}; llama.cpp takes it for the queries and keys of a delta net, too, where "
                              "the model has 1e-6", model.norm_epsilon));
  }
  keys.whole("ssm.conv_kernel", delta.kernel);
  keys.whole("ssm.state_size", delta.key_dim);
  keys.whole("ssm.group_count", delta.key_heads);
  keys.whole("ssm.time_step_rank", delta.value_heads);
  keys.whole("ssm.inner_size", delta.value_heads * delta.value_dim);
  std::vector<bool> recurrent;
  for (std::int64_t i = 0; i < source.blocks(); ++i) recurrent.push_back(model.layer[static_cast<std::size_t>(i)].delta_net);
  keys.flags("attention.recurrent_layers", recurrent);
  add_mtp(source, keys);
}

}  // namespace moetrim::gguf_list
