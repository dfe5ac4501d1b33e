// Groups of tensor rules that many families share.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "moetrim/family.h"

namespace moetrim::family_list {

/// One list from several, in order.
inline std::vector<TensorRule> join(std::initializer_list<std::vector<TensorRule>> groups) {
  std::vector<TensorRule> all;
  for (const auto& group : groups) all.insert(all.end(), group.begin(), group.end());
  return all;
}

/// Embedding, head, the two norms of a layer, and attention with optional biases, in the Llama spelling.
inline std::vector<TensorRule> decoder_rules() {
  using enum Axis;
  return {
      {Role::embedding, "model.embed_tokens.weight", {V, H}},
      {Role::final_norm, "model.norm.weight", {H}},
      {Role::head, "lm_head.weight", {V, H}, true},
      {Role::input_norm, "model.layers.{layer}.input_layernorm.weight", {H}},
      {Role::query, "model.layers.{layer}.self_attn.q_proj.weight", {Q, H}},
      {Role::key, "model.layers.{layer}.self_attn.k_proj.weight", {KV, H}},
      {Role::value, "model.layers.{layer}.self_attn.v_proj.weight", {KV, H}},
      {Role::output, "model.layers.{layer}.self_attn.o_proj.weight", {H, Q}},
      {Role::query_bias, "model.layers.{layer}.self_attn.q_proj.bias", {Q}, true},
      {Role::key_bias, "model.layers.{layer}.self_attn.k_proj.bias", {KV}, true},
      {Role::value_bias, "model.layers.{layer}.self_attn.v_proj.bias", {KV}, true},
      {Role::output_bias, "model.layers.{layer}.self_attn.o_proj.bias", {H}, true},
      {Role::mlp_norm, "model.layers.{layer}.post_attention_layernorm.weight", {H}},
  };
}

inline std::vector<TensorRule> query_key_norm_rules(std::vector<Axis> query, std::vector<Axis> key) {
  return {
      {Role::query_norm, "model.layers.{layer}.self_attn.q_norm.weight", std::move(query)},
      {Role::key_norm, "model.layers.{layer}.self_attn.k_norm.weight", std::move(key)},
  };
}

/// The MLP of a layer that is not MoE.
inline std::vector<TensorRule> dense_mlp_rules() {
  using enum Axis;
  return {
      {Role::dense_gate, "model.layers.{layer}.mlp.gate_proj.weight", {M, H}},
      {Role::dense_up, "model.layers.{layer}.mlp.up_proj.weight", {M, H}},
      {Role::dense_down, "model.layers.{layer}.mlp.down_proj.weight", {H, M}},
  };
}

/// Router and experts as `mlp.gate`, `mlp.experts.N.{gate,up,down}_proj`, or fused as transformers 5 holds them.
inline std::vector<TensorRule> mlp_expert_rules() {
  using enum Axis;
  return {
      {Role::router, "model.layers.{layer}.mlp.gate.weight", {E, H}},
      {Role::expert_gate, "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", {F, H}},
      {Role::expert_up, "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", {F, H}},
      {Role::expert_down, "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", {H, F}},
      {Role::fused_gate_up, "model.layers.{layer}.mlp.experts.gate_up_proj", {E, F2, H}},
      {Role::fused_down, "model.layers.{layer}.mlp.experts.down_proj", {E, H, F}},
  };
}

}  // namespace moetrim::family_list
