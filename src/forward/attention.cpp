// Attention and the dense MLP over one tile of tokens.

#include "forward/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>

#include "forward/kernels.h"
#include "forward/linear.h"

namespace moetrim {

namespace {

/// True where query i of L may see key j of S: not in the future, not beyond the window.
at::Tensor window_mask(std::int64_t length, std::int64_t keys, std::int64_t window, const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor i = (at::arange(length, options) + (keys - length)).unsqueeze(1);
  const at::Tensor j = at::arange(keys, options).unsqueeze(0);
  return (j <= i).logical_and(j > i - window);
}

/// Queries of a block: small enough to leave out most of the future, large enough for fast products.
constexpr std::int64_t kQueryBlock = 128;

/// Attention in fp32 on the CPU as matrix products over blocks of queries, all query heads of a key head at once. Twice as
/// fast as LibTorch's flash attention at a few hundred tokens, since a block multiplies only the keys that it may see.
at::Tensor blocked_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, std::int64_t window) {
  const auto length = queries.size(0);
  const auto offset = keys.size(0) - length;
  const auto head_dim = queries.size(2);
  const auto shared = queries.size(1) / keys.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  at::Tensor out = at::empty({length, queries.size(1), head_dim}, queries.options());
  std::vector<std::int32_t> first, last;
  for (std::int64_t begin = 0; begin < length; begin += kQueryBlock) {
    const auto count = std::min(kQueryBlock, length - begin);
    const auto end = offset + begin + count;
    const auto start = window > 0 ? std::max<std::int64_t>(0, offset + begin - window + 1) : 0;
    first.clear();
    last.clear();
    for (std::int64_t i = 0; i < count; ++i) {
      const auto position = offset + begin + i;
      const auto oldest = window > 0 ? std::max<std::int64_t>(0, position - window + 1) : 0;
      first.insert(first.end(), static_cast<std::size_t>(shared), static_cast<std::int32_t>(oldest - start));
      last.insert(last.end(), static_cast<std::size_t>(shared), static_cast<std::int32_t>(position + 1 - start));
    }
    for (std::int64_t head = 0; head < keys.size(1); ++head) {
      const at::Tensor q = queries.narrow(0, begin, count).narrow(1, head * shared, shared).reshape({count * shared, head_dim});
      const at::Tensor k = keys.slice(0, start, end).select(1, head);
      const at::Tensor v = values.slice(0, start, end).select(1, head);
      at::Tensor scores = at::mm(q, k.t());
      kernels::softmax_rows(scores, first, last, scale);
      out.narrow(0, begin, count).narrow(1, head * shared, shared).copy_(at::mm(scores, v).view({count, shared, head_dim}));
    }
  }
  return out.view({length, -1});
}

}  // namespace

kernels::HeadLayout head_layout(const Model& model, const LayerWeights& weights) {
  return {.heads = model.heads,
          .key_value_heads = model.key_value_heads,
          .head_dim = model.head_dim,
          .norm = model.family->query_key_norm,
          .epsilon = model.norm_epsilon,
          .clip = model.clip,
          .query_norm = weights.query_norm,
          .key_norm = weights.key_norm};
}

at::Tensor attention_of(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, std::int64_t window) {
  const auto length = queries.size(0);
  const auto seen = keys.size(0);
  if (queries.is_cpu() && queries.scalar_type() == at::kFloat && length > 1) {
    return blocked_attention(queries, keys, values, window);
  }
  const at::Tensor q = queries.transpose(0, 1).unsqueeze(0);
  const at::Tensor k = keys.transpose(0, 1).unsqueeze(0);
  const at::Tensor v = values.transpose(0, 1).unsqueeze(0);
  const bool masked = window > 0 && seen > window;
  at::Tensor out;
  if (masked || (length > 1 && seen > length)) {
    const at::Tensor mask = window_mask(length, seen, masked ? window : seen, q.device());
    out = at::scaled_dot_product_attention(q, k, v, mask, 0.0, false, std::nullopt, true);
  } else {
    out = at::scaled_dot_product_attention(q, k, v, {}, 0.0, length > 1, std::nullopt, true);
  }
  return out.squeeze(0).transpose(0, 1).reshape({length, -1});
}

void attend(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
            std::span<const std::int64_t> lengths, at::Tensor& hidden, TileScratch& scratch) {
  const Model& model = context.model;
  const auto rows = hidden.size(0);
  const auto queries = model.heads * model.head_dim;
  const auto keys = model.key_value_heads * model.head_dim;
  at::Tensor normed = grow(scratch.normed, rows, model.hidden, context.numerics.tile(), context.device).narrow(0, 0, rows);
  kernels::norm_rows(context.numerics, hidden, weights.input_norm, model.norm_epsilon, normed);
  at::Tensor qkv = linear(normed, weights.query_key_value, weights.query_key_value_bias, scratch.qkv);
  at::Tensor attended = grow(scratch.attended, rows, queries, context.numerics.tile(), context.device).narrow(0, 0, rows);
  const auto layout = head_layout(model, weights);
  std::int64_t begin = 0;
  for (const std::int64_t length : lengths) {
    at::Tensor part = qkv.narrow(0, begin, length);
    const auto [cosine, sine] = context.rotary.rows(length);
    kernels::rotate_rows(context.numerics, part, layout, cosine, sine);
    const auto heads = [&](std::int64_t from, std::int64_t width) {
      return part.narrow(1, from, width).view({length, -1, model.head_dim});
    };
    attended.narrow(0, begin, length)
        .copy_(attention_of(heads(0, queries), heads(queries, keys), heads(queries + keys, keys), layer.window));
    begin += length;
  }
  kernels::round_product(context.numerics, attended);
  kernels::add_rows(context.numerics, hidden, linear(attended, weights.output, weights.output_bias, scratch.projected));
}

at::Tensor gated_mlp(const TileContext& context, const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& down,
                     TileScratch& scratch) {
  const at::Tensor product = linear(x, gate_up, {}, scratch.gate_up);
  const auto rows = x.size(0);
  at::Tensor activated =
      grow(scratch.activated, rows, down.size(1), x.scalar_type(), context.device).narrow(0, 0, rows);
  kernels::gated_silu(context.numerics, product, activated);
  return linear(activated, down, {}, scratch.mlp_out);
}

}  // namespace moetrim
