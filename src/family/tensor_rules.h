// Groups of tensor rules, and a router, that several families share.
#pragma once

#include <initializer_list>
#include <string>
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

/// The rules again under other names: every name that has `from` in it, once, with `to` instead.
inline std::vector<TensorRule> respelled(std::vector<TensorRule> rules, std::string_view from, std::string_view to) {
  std::vector<TensorRule> out;
  for (TensorRule& rule : rules) {
    const auto at = rule.name.find(from);
    if (at == std::string::npos) continue;
    rule.name.replace(at, from.size(), to);
    out.push_back(std::move(rule));
  }
  return out;
}

/// The rules with all of them optional: which are needed depends on the config.
inline std::vector<TensorRule> optional(std::vector<TensorRule> rules) {
  for (TensorRule& rule : rules) rule.optional = true;
  return rules;
}

/// Embedding, head and the two norms of a layer in the Llama spelling.
inline std::vector<TensorRule> skeleton_rules() {
  using enum Axis;
  return {
      {Role::embedding, "model.embed_tokens.weight", {V, H}},
      {Role::final_norm, "model.norm.weight", {H}},
      {Role::head, "lm_head.weight", {V, H}, true},
      {Role::input_norm, "model.layers.{layer}.input_layernorm.weight", {H}},
      {Role::mlp_norm, "model.layers.{layer}.post_attention_layernorm.weight", {H}},
  };
}

/// Attention with optional biases.
inline std::vector<TensorRule> attention_rules() {
  using enum Axis;
  return {
      {Role::query, "model.layers.{layer}.self_attn.q_proj.weight", {Q, H}},
      {Role::key, "model.layers.{layer}.self_attn.k_proj.weight", {KV, H}},
      {Role::value, "model.layers.{layer}.self_attn.v_proj.weight", {KV, H}},
      {Role::output, "model.layers.{layer}.self_attn.o_proj.weight", {H, Q}},
      {Role::query_bias, "model.layers.{layer}.self_attn.q_proj.bias", {Q}, true},
      {Role::key_bias, "model.layers.{layer}.self_attn.k_proj.bias", {KV}, true},
      {Role::value_bias, "model.layers.{layer}.self_attn.v_proj.bias", {KV}, true},
      {Role::output_bias, "model.layers.{layer}.self_attn.o_proj.bias", {H}, true},
  };
}

inline std::vector<TensorRule> decoder_rules() { return join({skeleton_rules(), attention_rules()}); }

inline std::vector<TensorRule> query_key_norm_rules(std::vector<Axis> query, std::vector<Axis> key) {
  return {
      {Role::query_norm, "model.layers.{layer}.self_attn.q_norm.weight", std::move(query)},
      {Role::key_norm, "model.layers.{layer}.self_attn.k_norm.weight", std::move(key)},
  };
}

/// Multi-head latent attention. Which of the query's tensors exist depends on q_lora_rank.
inline std::vector<TensorRule> latent_attention_rules() {
  using enum Axis;
  return {
      {Role::query, "model.layers.{layer}.self_attn.q_proj.weight", {QN, H}, true},
      {Role::query_down, "model.layers.{layer}.self_attn.q_a_proj.weight", {query_rank, H}, true},
      {Role::query_down_bias, "model.layers.{layer}.self_attn.q_a_proj.bias", {query_rank}, true},
      {Role::query_down_norm, "model.layers.{layer}.self_attn.q_a_layernorm.weight", {query_rank}, true},
      {Role::query_up, "model.layers.{layer}.self_attn.q_b_proj.weight", {QN, query_rank}, true},
      {Role::key_value_down, "model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight", {latent_rope, H}},
      {Role::key_value_down_bias, "model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias", {latent_rope}, true},
      {Role::key_value_norm, "model.layers.{layer}.self_attn.kv_a_layernorm.weight", {latent}},
      {Role::key_value_up, "model.layers.{layer}.self_attn.kv_b_proj.weight", {KVN, latent}},
      {Role::output, "model.layers.{layer}.self_attn.o_proj.weight", {H, VH}},
      {Role::output_bias, "model.layers.{layer}.self_attn.o_proj.bias", {H}, true},
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

/// Experts as `mlp.experts.N.{gate,up,down}_proj`.
inline std::vector<TensorRule> expert_rules() {
  using enum Axis;
  return {
      {Role::expert_gate, "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", {F, H}},
      {Role::expert_up, "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", {F, H}},
      {Role::expert_down, "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", {H, F}},
  };
}

inline std::vector<TensorRule> router_rules() {
  return {{Role::router, "model.layers.{layer}.mlp.gate.weight", {Axis::E, Axis::H}}};
}

/// The names that transformers 5 has in memory, met in checkpoints that were saved fused.
inline std::vector<TensorRule> fused_rules() {
  using enum Axis;
  return {
      {Role::fused_gate_up, "model.layers.{layer}.mlp.experts.gate_up_proj", {E, F2, H}},
      {Role::fused_down, "model.layers.{layer}.mlp.experts.down_proj", {E, H, F}},
  };
}

/// Fused experts whose matrices are stored input first.
inline std::vector<TensorRule> transposed_fused_rules() {
  using enum Axis;
  return {
      {Role::fused_gate_up, "model.layers.{layer}.mlp.experts.gate_up_proj", {E, H, F2}},
      {Role::fused_down, "model.layers.{layer}.mlp.experts.down_proj", {E, F, H}},
  };
}

/// Mixtral's names: w1 is gate, w3 is up, w2 is down.
inline std::vector<TensorRule> block_sparse_moe_rules() {
  using enum Axis;
  const std::string base = "model.layers.{layer}.block_sparse_moe.";
  return {
      {Role::router, base + "gate.weight", {E, H}},
      {Role::expert_gate, base + "experts.{expert}.w1.weight", {F, H}},
      {Role::expert_up, base + "experts.{expert}.w3.weight", {F, H}},
      {Role::expert_down, base + "experts.{expert}.w2.weight", {H, F}},
  };
}

/// Router and experts, one by one or fused.
inline std::vector<TensorRule> mlp_expert_rules() { return join({router_rules(), expert_rules(), fused_rules()}); }

/// DeepSeek-V3's router: sigmoids, a selection bias, groups scored by their two best experts.
inline RouterTraits deepseek_v3_router(bool normalise_default) {
  return {.score = RouterScore::sigmoid,
          .normalise = NormaliseGates::by_config,
          .normalise_default = normalise_default,
          .logits_in_fp32 = true,
          .scaled = true,
          .groups = GroupRule::top2};
}

/// A selection bias beside the router.
inline std::vector<TensorRule> selection_bias_rules() {
  return {{Role::selection_bias, "model.layers.{layer}.mlp.gate.e_score_correction_bias", {Axis::E}}};
}

/// Experts that see every token, under the name of their module.
inline std::vector<TensorRule> shared_expert_rules(std::string_view module) {
  using enum Axis;
  const std::string base = "model.layers.{layer}.mlp." + std::string(module);
  return {
      {Role::shared_gate, base + ".gate_proj.weight", {S, H}},
      {Role::shared_up, base + ".up_proj.weight", {S, H}},
      {Role::shared_down, base + ".down_proj.weight", {H, S}},
  };
}

/// A shared expert with a sigmoid gate (Qwen).
inline std::vector<TensorRule> gated_shared_expert_rules() {
  return join({shared_expert_rules("shared_expert"),
               {{Role::shared_router, "model.layers.{layer}.mlp.shared_expert_gate.weight", {Axis::one, Axis::H}}}});
}

/// The block that predicts one token further, as DeepSeek-V3 stores it: a layer after the last one.
inline std::vector<TensorRule> appended_mtp_rules() {
  using enum Axis;
  return {
      {Role::mtp_embedding_norm, "model.layers.{layer}.enorm.weight", {H}},
      {Role::mtp_hidden_norm, "model.layers.{layer}.hnorm.weight", {H}},
      {Role::mtp_projection, "model.layers.{layer}.eh_proj.weight", {H, H2}},
      {Role::mtp_final_norm, "model.layers.{layer}.shared_head.norm.weight", {H}},
      {Role::mtp_embedding, "model.layers.{layer}.embed_tokens.weight", {V, H}, true},
      {Role::mtp_head, "model.layers.{layer}.shared_head.head.weight", {V, H}, true},
  };
}

/// Attention whose queries come with a gate for its output (Qwen3-Next).
inline std::vector<TensorRule> gated_attention_rules() {
  std::vector<TensorRule> rules = join({attention_rules(), query_key_norm_rules({Axis::D}, {Axis::D})});
  for (TensorRule& rule : rules) {
    if (rule.role == Role::query) rule.axes[0] = Axis::Q2;
    if (rule.role == Role::query_bias) rule.axes[0] = Axis::Q2;
  }
  return rules;
}

/// The block that predicts one token further, as Qwen3-Next stores it: apart from the layers.
inline std::vector<TensorRule> separate_mtp_rules(std::vector<TensorRule> layer_rules) {
  using enum Axis;
  return join({{{Role::mtp_embedding_norm, "mtp.pre_fc_norm_embedding.weight", {H}},
                {Role::mtp_hidden_norm, "mtp.pre_fc_norm_hidden.weight", {H}},
                {Role::mtp_projection, "mtp.fc.weight", {H, H2}},
                {Role::mtp_final_norm, "mtp.norm.weight", {H}}},
               respelled(std::move(layer_rules), "model.layers.{layer}.", "mtp.layers.{mtp}.")});
}

/// Gated delta net; `grouped` is the Qwen3-Next order (query, key, value, z of one key head after another).
inline std::vector<TensorRule> delta_net_rules(bool grouped) {
  using enum Axis;
  const std::string base = "model.layers.{layer}.linear_attn.";
  std::vector<TensorRule> rules{
      {Role::delta_conv, base + "conv1d.weight", {delta_conv, one, delta_kernel}},
      {Role::delta_time_bias, base + "dt_bias", {delta_heads}},
      {Role::delta_decay, base + "A_log", {delta_heads}},
      {Role::delta_norm, base + "norm.weight", {delta_head_dim}},
      {Role::delta_output, base + "out_proj.weight", {H, delta_values}},
  };
  if (grouped) {
    rules.push_back({Role::delta_qkvz, base + "in_proj_qkvz.weight", {delta_qkvz, H}});
    rules.push_back({Role::delta_ba, base + "in_proj_ba.weight", {delta_heads2, H}});
  } else {
    rules.push_back({Role::delta_qkv, base + "in_proj_qkv.weight", {delta_conv, H}});
    rules.push_back({Role::delta_z, base + "in_proj_z.weight", {delta_values, H}});
    rules.push_back({Role::delta_b, base + "in_proj_b.weight", {delta_heads, H}});
    rules.push_back({Role::delta_a, base + "in_proj_a.weight", {delta_heads, H}});
  }
  return rules;
}

}  // namespace moetrim::family_list
