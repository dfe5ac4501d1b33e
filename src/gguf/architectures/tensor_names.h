// Groups of tensors that have the same names in most architectures.
#pragma once

#include <initializer_list>
#include <vector>

#include "gguf/export/mapping.h"

namespace moetrim::gguf_list {

using gguf_detail::GgufKeyRule;
using gguf_detail::GgufKeys;
using gguf_detail::GgufMapping;
using gguf_detail::GgufOperation;
using gguf_detail::GgufSource;
using gguf_detail::GgufTensorRule;

using Rules = std::vector<GgufTensorRule>;

/// One list from several, in order.
inline Rules join(std::initializer_list<Rules> groups) {
  Rules all;
  for (const Rules& group : groups) all.insert(all.end(), group.begin(), group.end());
  return all;
}

/// The rules with another operation for some roles.
inline Rules with(Rules rules, GgufOperation operation, std::initializer_list<Role> roles) {
  for (GgufTensorRule& rule : rules) {
    for (const Role role : roles) {
      if (rule.role == role) rule.operation = operation;
    }
  }
  return rules;
}

/// Embedding, head and the norms.
inline Rules skeleton() {
  return {
      {Role::embedding, "token_embd.weight"},
      {Role::final_norm, "output_norm.weight"},
      {Role::head, "output.weight"},
      {Role::input_norm, "blk.{}.attn_norm.weight"},
      {Role::mlp_norm, "blk.{}.ffn_norm.weight"},
  };
}

/// The same where the norm before the MLP is named after the attention before it.
inline Rules post_norm_skeleton() {
  Rules rules = skeleton();
  for (GgufTensorRule& rule : rules) {
    if (rule.role == Role::mlp_norm) rule.name = "blk.{}.post_attention_norm.weight";
  }
  return rules;
}

inline Rules attention() {
  return {
      {Role::query, "blk.{}.attn_q.weight"},
      {Role::key, "blk.{}.attn_k.weight"},
      {Role::value, "blk.{}.attn_v.weight"},
      {Role::output, "blk.{}.attn_output.weight"},
      {Role::query_bias, "blk.{}.attn_q.bias"},
      {Role::key_bias, "blk.{}.attn_k.bias"},
      {Role::value_bias, "blk.{}.attn_v.bias"},
  };
}

/// Attention for the architectures whose rotation pairs neighbours.
inline Rules neighbour_attention() {
  return with(attention(), GgufOperation::rotary_pairs, {Role::query, Role::key, Role::query_bias, Role::key_bias});
}

inline Rules query_key_norms() {
  return {
      {Role::query_norm, "blk.{}.attn_q_norm.weight"},
      {Role::key_norm, "blk.{}.attn_k_norm.weight"},
  };
}

inline Rules dense_mlp() {
  return {
      {Role::dense_gate, "blk.{}.ffn_gate.weight"},
      {Role::dense_up, "blk.{}.ffn_up.weight"},
      {Role::dense_down, "blk.{}.ffn_down.weight"},
  };
}

/// Router and experts, one by one or fused.
inline Rules experts() {
  return {
      {Role::router, "blk.{}.ffn_gate_inp.weight"},
      {Role::expert_gate, "blk.{}.ffn_gate_exps.weight"},
      {Role::expert_up, "blk.{}.ffn_up_exps.weight"},
      {Role::expert_down, "blk.{}.ffn_down_exps.weight"},
      {Role::fused_gate_up, "blk.{}.ffn_gate_exps.weight", GgufOperation::gate_half},
      {Role::fused_gate_up, "blk.{}.ffn_up_exps.weight", GgufOperation::up_half},
      {Role::fused_down, "blk.{}.ffn_down_exps.weight"},
  };
}

inline Rules selection_bias() { return {{Role::selection_bias, "blk.{}.exp_probs_b.bias", GgufOperation::squeezed}}; }

inline Rules shared_experts() {
  return {
      {Role::shared_gate, "blk.{}.ffn_gate_shexp.weight"},
      {Role::shared_up, "blk.{}.ffn_up_shexp.weight"},
      {Role::shared_down, "blk.{}.ffn_down_shexp.weight"},
  };
}

/// What a block that predicts one token further has beside a layer's tensors.
inline Rules next_tokens() {
  return {
      {Role::mtp_projection, "blk.{}.nextn.eh_proj.weight"},
      {Role::mtp_embedding_norm, "blk.{}.nextn.enorm.weight"},
      {Role::mtp_hidden_norm, "blk.{}.nextn.hnorm.weight"},
      {Role::mtp_final_norm, "blk.{}.nextn.shared_head_norm.weight"},
      {Role::mtp_embedding, "blk.{}.nextn.embed_tokens.weight"},
      {Role::mtp_head, "blk.{}.nextn.shared_head_head.weight"},
  };
}

}  // namespace moetrim::gguf_list
