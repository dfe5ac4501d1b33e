// Attention over one tile of tokens: the residual step around every kind of it, grouped-query attention, and the dense MLP.

#include "forward/attention.h"

#include <cmath>

#include <ATen/ATen.h>

#include "forward/input_watch.h"
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

}  // namespace

/// Llama-4's layers without rope: queries grow with the logarithm of their position.
at::Tensor query_temperature(const TileContext& context, const SequencePart& part) {
  const Model& model = context.model;
  const auto options = at::TensorOptions().dtype(context.numerics.wide()).device(context.device);
  const at::Tensor position = at::arange(part.past, part.past + part.length, options) + 1.0;
  return (at::log1p(at::floor(position / model.temperature_floor)) * model.temperature_scale + 1.0).unsqueeze(1);
}

kernels::HeadLayout head_layout(const Model& model, const LayerTensors& layer, const AttentionWeights& weights) {
  const bool unit = model.query_key_norm == QueryKeyNorm::unit_after_rope;
  return {.heads = model.heads,
          .key_value_heads = model.key_value_heads,
          .head_dim = model.head_dim,
          .norm = unit && !layer.rotates ? QueryKeyNorm::none : model.query_key_norm,
          .clip = model.clip,
          .query_norm = weights.query_norm,
          .key_norm = weights.key_norm};
}

AttentionRule attention_rule(const Model& model, const LayerTensors& layer, const AttentionWeights& weights) {
  return {.scale = model.attention_scale, .window = layer.window, .chunk = layer.chunk, .sinks = weights.sinks};
}

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
  const kernels::HeadLayout layout = head_layout(model, layer, weights);
  const AttentionRule rule = attention_rule(model, layer, weights);
  const auto begins = part_begins(parts);
  for_each(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i) {
    const SequencePart& sequence = parts[static_cast<std::size_t>(i)];
    const auto begin = begins[static_cast<std::size_t>(i)];
    at::Tensor part = qkv.narrow(0, begin, sequence.length);
    const auto rotation = layer.rotates ? context.rotary.rows(sequence.past, sequence.length) : kernels::Rotation{};
    kernels::rotate_rows(context.numerics, part, layout, rotation);
    if (!layer.rotates && model.temperature_tuning) {
      at::Tensor tuned = part.narrow(1, 0, queries);
      tuned.mul_(query_temperature(context, sequence).to(tuned.scalar_type()));
      if (context.numerics.bf16_in_fp32) tuned.copy_(tuned.to(at::kBFloat16));
    }
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
  if (scratch.inputs != nullptr) scratch.inputs->take(LinearInput::attention, normed);
  at::Tensor mixed;
  if (layer.delta_net) {
    mixed = delta_net(context, weights.delta, parts, normed, scratch, for_each);
  } else if (context.model.family->attention.latent) {
    mixed = latent_attention(context, weights.latent, parts, normed, scratch, for_each);
  } else {
    mixed = grouped_query_attention(context, layer, weights.attention, parts, normed, scratch, for_each);
  }
  if (scratch.inputs != nullptr) scratch.inputs->take(LinearInput::attention_output, mixed);
  kernels::add_rows(context.numerics, hidden, linear(mixed, weights.output, weights.output_bias, scratch.projected),
                    context.model.residual_scale);
}

at::Tensor attend_and_norm(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
                           std::span<const SequencePart> parts, at::Tensor& hidden, TileScratch& scratch, const ForEach& for_each) {
  attend(context, layer, weights, parts, hidden, scratch, for_each);
  const auto rows = hidden.size(0);
  at::Tensor normed =
      grow(scratch.normed, rows, context.model.hidden, context.numerics.tile(), context.device).narrow(0, 0, rows);
  kernels::norm_rows(context.numerics, hidden, weights.mlp_norm, normed);
  return normed;
}

kernels::GatedUnit gated_unit(const Model& model) {
  if (model.family->activation == Activation::silu) return {};
  return {.limit = model.swiglu_limit, .alpha = model.swiglu_alpha, .offset = 1.0};
}

at::Tensor activate(const TileContext& context, const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& bias,
                    TileScratch& scratch) {
  const at::Tensor product = linear(x, gate_up, bias, scratch.gate_up);
  const auto rows = x.size(0);
  at::Tensor out = grow(scratch.activated, rows, gate_up.size(0) / 2, x.scalar_type(), context.device).narrow(0, 0, rows);
  if (context.model.family->activation == Activation::silu) {
    kernels::gated_silu(context.numerics, product, out);
  } else {
    kernels::clamped_swiglu(context.numerics, product, context.model.swiglu_limit, context.model.swiglu_alpha, out);
  }
  return out;
}

at::Tensor gated_mlp(const TileContext& context, const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& down,
                     TileScratch& scratch) {
  const at::Tensor activated = activate(context, x, gate_up, {}, scratch);
  if (scratch.inputs != nullptr) scratch.inputs->take(LinearInput::mlp_down, activated);
  return linear(activated, down, {}, scratch.mlp_out);
}

}  // namespace moetrim
