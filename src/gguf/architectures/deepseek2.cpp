// DeepSeek-V2, DeepSeek-V3, Kimi-K2 and Moonlight. Latent attention is written as llama.cpp computes it: one key-value head,
// the latent vector; queries are taken there by k_b, and what they find is brought back by v_b.

#include <cmath>

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/router_keys.h"

namespace moetrim::gguf_list {

namespace {

Rules latent_attention() {
  return {
      {Role::query, "blk.{}.attn_q.weight"},
      {Role::query_down, "blk.{}.attn_q_a.weight"},
      {Role::query_down_norm, "blk.{}.attn_q_a_norm.weight"},
      {Role::query_up, "blk.{}.attn_q_b.weight"},
      {Role::key_value_down, "blk.{}.attn_kv_a_mqa.weight"},
      {Role::key_value_norm, "blk.{}.attn_kv_a_norm.weight"},
      {Role::key_value_up, "blk.{}.attn_k_b.weight", GgufOperation::latent_key},
      {Role::key_value_up, "blk.{}.attn_v_b.weight", GgufOperation::latent_value},
      {Role::output, "blk.{}.attn_output.weight"},
  };
}

/// llama.cpp tells models without q_lora_rank by their number of layers; of all others it wants the key, and 0 says so, too.
void add_query_rank(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  const bool lite = model.layers == 26 || model.layers == 27 || (model.layers == 48 && model.vocabulary == 128256);
  if (lite && model.latent.query_rank > 0) {
    source.refuse(fmt::format("q_lora_rank is {}; llama.cpp takes a deepseek2 of {} layers for one without",
                              model.latent.query_rank, model.layers));
  }
  keys.whole("attention.q_lora_rank", model.latent.query_rank);
}

/// llama.cpp scales attention by the square of a (1 + m ln factor), where a multiplies cosine and sine.
void add_yarn_multiplier(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  const double scale = std::sqrt(model.attention_scale * std::sqrt(static_cast<double>(model.head_dim)));
  if (model.rope.kind != RopeKind::yarn || model.rope.factor <= 1) {
    if (std::abs(scale - 1) < 1e-6) return;
    source.refuse("rope scaling other than yarn scales attention (mscale_all_dim); llama.cpp's deepseek2 does so with yarn "
                  "alone");
  }
  const double multiplier = (scale / model.rope.attention_factor - 1) / std::log(model.rope.factor);
  if (std::abs(multiplier) < 1e-6) {
    source.refuse("yarn scales attention as it scales cosine and sine (mscale_all_dim), which llama.cpp's deepseek2 "
                  "cannot");
  }
  keys.real("rope.scaling.yarn_log_multiplier", multiplier);
}

void more(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  if (model.rope_pairs != RopePairs::neighbours) {
    source.refuse("rope_interleave is false; llama.cpp's deepseek2 rotates neighbouring values of a head together");
  }
  check_shared_experts(source, "deepseek2");
  add_leading_dense(source, keys);
  add_gating(source, keys);
  add_groups(source, keys);
  add_query_rank(source, keys);
  add_yarn_multiplier(source, keys);
  keys.whole("attention.head_count_kv", 1);
  keys.whole("attention.kv_lora_rank", model.latent.rank);
  keys.whole("attention.key_length", model.latent.rank + model.latent.rotated);
  keys.whole("attention.value_length", model.latent.rank);
  keys.whole("attention.key_length_mla", model.head_dim);
  keys.whole("attention.value_length_mla", model.latent.value);
}

}  // namespace

const GgufMapping deepseek2{
    .architecture = "deepseek2",
    .tensors = join({skeleton(), latent_attention(), dense_mlp(), experts(), selection_bias(), shared_experts()}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}}, {"expert_shared_count", {"n_shared_experts"}}},
    .scales_gates = true,
    .dense_layers = true,
    .partial_rotary = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
