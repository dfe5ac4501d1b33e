// Attention over one tile of tokens: the residual step around every kind of it, grouped-query attention, and the dense MLP.

#include "forward/attention.h"

#include <cmath>

#include <ATen/ATen.h>

#include "forward/linear.h"

namespace moetrim {

void in_turn(std::int64_t count, const std::function<void(std::int64_t)>& body) {
  for (std::int64_t i = 0; i < count; ++i) body(i);
}

namespace {

/// Where each part begins among the rows of a tile.
std::vector<std::int64_t> part_begins(std::span<const SequencePart> parts) {
  std::vector<std::int64_t> begins;
  std::int64_t at = 0;
  for (const auto& part : parts) {
    begins.push_back(at);
    at += part.length;
  }
  return begins;
}

/// Llama-4's layers without rope: queries grow with the logarithm of their position.
void tune_temperature(const TileContext& context, const SequencePart& part, at::Tensor queries) {
  const Model& model = context.model;
  const at::Tensor position = at::arange(part.past, part.past + part.length, queries.options().dtype(at::kFloat)) + 1.0;
  const at::Tensor scale = at::log1p(at::floor(position / model.temperature_floor)) * model.temperature_scale + 1.0;
  queries.mul_(scale.unsqueeze(1).to(queries.scalar_type()));
  if (context.numerics.bf16_in_fp32) queries.copy_(queries.to(at::kBFloat16));
}

}  // namespace

at::Tensor attend_with_cache(const SequencePart& part, const at::Tensor& queries, const at::Tensor& keys,
                             const at::Tensor& values, const AttentionRule& rule) {
  if (part.cache == nullptr) return attention_of(queries, keys, values, rule);
  const auto seen = part.past + part.length;
  part.cache->keys.narrow(0, part.past, part.length).copy_(keys);
  part.cache->values.narrow(0, part.past, part.length).copy_(values);
  return attention_of(queries, part.cache->keys.narrow(0, 0, seen), part.cache->values.narrow(0, 0, seen), rule);
}

at::Tensor grouped_query_attention(const TileContext& context, const LayerTensors& layer, const AttentionWeights& weights,
                                   std::span<const SequencePart> parts, const at::Tensor& normed, TileScratch& scratch,
                                   const ForEach& for_each) {
  const Model& model = context.model;
  const auto rows = normed.size(0);
  const auto queries = model.heads * model.head_dim;
  const auto keys = model.key_value_heads * model.head_dim;
  const at::Tensor qkv = linear(normed, weights.query_key_value, weights.query_key_value_bias, scratch.qkv);
  at::Tensor attended = grow(scratch.attended, rows, queries, context.numerics.tile(), context.device).narrow(0, 0, rows);
  const bool unit = model.query_key_norm == QueryKeyNorm::unit_after_rope;
  const kernels::HeadLayout layout{.heads = model.heads,
                                   .key_value_heads = model.key_value_heads,
                                   .head_dim = model.head_dim,
                                   .norm = unit && !layer.rotates ? QueryKeyNorm::none : model.query_key_norm,
                                   .clip = model.clip,
                                   .query_norm = weights.query_norm,
                                   .key_norm = weights.key_norm};
  const AttentionRule rule{.scale = model.attention_scale, .window = layer.window, .chunk = layer.chunk, .sinks = weights.sinks};
  const auto begins = part_begins(parts);
  for_each(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i) {
    const SequencePart& sequence = parts[static_cast<std::size_t>(i)];
    const auto begin = begins[static_cast<std::size_t>(i)];
    at::Tensor part = qkv.narrow(0, begin, sequence.length);
    const auto rotation = layer.rotates ? context.rotary.rows(sequence.past, sequence.length) : kernels::Rotation{};
    kernels::rotate_rows(context.numerics, part, layout, rotation);
    if (!layer.rotates && model.temperature_tuning) tune_temperature(context, sequence, part.narrow(1, 0, queries));
    const auto heads = [&](std::int64_t from, std::int64_t width) {
      return part.narrow(1, from, width).view({sequence.length, -1, model.head_dim});
    };
    attended.narrow(0, begin, sequence.length)
        .copy_(attend_with_cache(sequence, heads(0, queries), heads(queries, keys), heads(queries + keys, keys), rule));
  });
  kernels::round_product(context.numerics, attended);
  if (model.family->attention.output_gate) {
    at::Tensor gate = qkv.narrow(1, queries + 2 * keys, queries).sigmoid();
    kernels::round_product(context.numerics, gate);
    attended.mul_(gate);
    kernels::round_product(context.numerics, attended);
  }
  return attended;
}

void attend(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
            std::span<const SequencePart> parts, at::Tensor& hidden, TileScratch& scratch, const ForEach& for_each) {
  const auto rows = hidden.size(0);
  at::Tensor normed =
      grow(scratch.normed, rows, context.model.hidden, context.numerics.tile(), context.device).narrow(0, 0, rows);
  kernels::norm_rows(context.numerics, hidden, weights.input_norm, normed);
  at::Tensor mixed;
  if (layer.delta_net) {
    mixed = delta_net(context, weights.delta, parts, normed, scratch, for_each);
  } else if (context.model.family->attention.latent) {
    mixed = latent_attention(context, weights.latent, parts, normed, scratch, for_each);
  } else {
    mixed = grouped_query_attention(context, layer, weights.attention, parts, normed, scratch, for_each);
  }
  kernels::add_rows(context.numerics, hidden, linear(mixed, weights.output, weights.output_bias, scratch.projected),
                    context.model.residual_scale);
}

at::Tensor gated_mlp(const TileContext& context, const at::Tensor& x, const GatedMlp& mlp, TileScratch& scratch) {
  const at::Tensor product = linear(x, mlp.gate_up, mlp.gate_up_bias, scratch.gate_up);
  const auto rows = x.size(0);
  at::Tensor activated = grow(scratch.activated, rows, mlp.down.size(1), x.scalar_type(), context.device).narrow(0, 0, rows);
  if (context.model.family->activation == Activation::silu) {
    kernels::gated_silu(context.numerics, product, activated);
  } else {
    kernels::clamped_swiglu(context.numerics, product, context.model.swiglu_limit, context.model.swiglu_alpha, activated);
  }
  return linear(activated, mlp.down, mlp.down_bias, scratch.mlp_out);
}

}  // namespace moetrim
