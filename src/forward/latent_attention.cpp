// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1): keys and values of all heads come from one short
// latent vector per token, and all heads share the rotated part of the key.

#include <ATen/ATen.h>

#include "forward/attention.h"
#include "forward/input_watch.h"
#include "forward/linear.h"

namespace moetrim {

namespace {

/// Normalises columns [from, from + width) of a product into `out`.
at::Tensor normed_columns(const TileContext& context, const at::Tensor& product, std::int64_t from, std::int64_t width,
                          const Norm& norm, at::Tensor& out) {
  at::Tensor rows = grow(out, product.size(0), width, context.numerics.tile(), context.device).narrow(0, 0, product.size(0));
  kernels::norm_product(context.numerics, product.narrow(1, from, width), norm, rows);
  return rows;
}

/// The latents of a sequence as every head attends to them: what the value rows of key_value_up read in a runtime that
/// attends to latents. The scores are taken again, so that nobody pays who does not ask. latent [L, rank]
void note_attended_latents(TileInputs& inputs, std::size_t part, const at::Tensor& query, const at::Tensor& keys,
                           const at::Tensor& latent, const AttentionRule& rule) {
  const auto on_host = [](const at::Tensor& x) { return x.to(at::kCPU, at::kFloat).contiguous(); };
  const at::Tensor latents = on_host(latent).unsqueeze(1);
  const auto rank = latents.size(2);
  visit_blocks(on_host(query), on_host(keys), rule, [&](const AttentionBlock& block) {
    const at::Tensor seen = latents.slice(0, block.seen_begin, block.seen_end).select(1, 0);
    inputs.take_block(LinearInput::attended_latent, part, block.begin, product(block.shares, seen.t()), block.head * rank,
                      query.size(1) * rank);
  });
}

}  // namespace

at::Tensor latent_attention(const TileContext& context, const LatentWeights& weights, std::span<const SequencePart> parts,
                            const at::Tensor& normed, TileScratch& scratch, const ForEach& for_each) {
  const Model& model = context.model;
  const LatentSizes& sizes = model.latent;
  const auto rows = normed.size(0);
  at::Tensor down = linear(normed, weights.down, weights.down_bias, scratch.qkv);
  const auto front = down.size(1) - sizes.rank - sizes.rotated;
  at::Tensor query = down.narrow(1, 0, front);
  if (weights.query_up.defined()) {
    query = linear(normed_columns(context, down, 0, front, weights.query_norm, scratch.latent_query), weights.query_up, {},
                   scratch.query);
  }
  const at::Tensor latent = normed_columns(context, down, front, sizes.rank, weights.key_value_norm, scratch.latent_key_value);
  at::Tensor key_value = linear(latent, weights.key_value_up, {}, scratch.key_value);
  kernels::round_product(context.numerics, down);
  if (weights.query_up.defined()) kernels::round_product(context.numerics, query);
  kernels::round_product(context.numerics, key_value);
  if (scratch.inputs != nullptr) {
    if (weights.query_up.defined()) scratch.inputs->take(LinearInput::query_latent, scratch.latent_query.narrow(0, 0, rows));
    scratch.inputs->take(LinearInput::key_value_latent, latent);
    const at::Tensor plain = query.reshape({rows, model.heads, model.head_dim}).narrow(2, 0, sizes.plain);
    scratch.inputs->take(LinearInput::query_heads, plain.reshape({rows, model.heads * sizes.plain}));
  }

  at::Tensor attended =
      grow(scratch.attended, rows, model.heads * sizes.value, context.numerics.tile(), context.device).narrow(0, 0, rows);
  const AttentionRule rule{.scale = model.attention_scale};
  std::vector<std::int64_t> begins{0};
  for (const auto& part : parts) begins.push_back(begins.back() + part.length);
  for_each(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i) {
    const SequencePart& part = parts[static_cast<std::size_t>(i)];
    const auto begin = begins[static_cast<std::size_t>(i)];
    const auto rotation = context.rotary.rows(part.past, part.length);
    const at::Tensor q = query.narrow(0, begin, part.length).view({part.length, model.heads, model.head_dim});
    at::Tensor turned_query = q.narrow(2, sizes.plain, sizes.rotated);
    kernels::rotate_heads(context.numerics, turned_query, rotation);
    at::Tensor turned_key = down.narrow(0, begin, part.length).narrow(1, front + sizes.rank, sizes.rotated).unsqueeze(1);
    kernels::rotate_heads(context.numerics, turned_key, rotation);
    const at::Tensor kv = key_value.narrow(0, begin, part.length).view({part.length, model.heads, sizes.plain + sizes.value});
    const at::Tensor keys = at::cat({kv.narrow(2, 0, sizes.plain), turned_key.expand({-1, model.heads, -1})}, 2);
    attended.narrow(0, begin, part.length)
        .copy_(attend_with_cache(part, q, keys, kv.narrow(2, sizes.plain, sizes.value), rule));
    if (scratch.inputs != nullptr) {
      const at::Tensor latents = latent.narrow(0, begin, part.length);
      note_attended_latents(*scratch.inputs, static_cast<std::size_t>(i), q, keys, latents, rule);
    }
  });
  kernels::round_product(context.numerics, attended);
  return attended;
}

}  // namespace moetrim
