// Gated delta net (arXiv 2412.06464) as Qwen3-Next has it: a short causal convolution over queries, keys and values, unit
// queries and keys, the gated delta rule, and a norm that is gated by z.

#include <ATen/ATen.h>

#include "forward/attention.h"
#include "forward/linear.h"

namespace moetrim {

namespace {

/// Rounds fp32 values to what a bf16 run would hold.
at::Tensor held(const Numerics& numerics, const at::Tensor& x) {
  return numerics.precision == Precision::bf16 ? x.to(at::kBFloat16).to(at::kFloat) : x;
}

/// out[t, c] = silu(sum over j of weight[c, j] x[t - kernel + 1 + j, c]), with what came before in the cache.
/// x [L, C] f32; weight [C, kernel].
at::Tensor causal_convolution(const Numerics& numerics, const at::Tensor& x, const at::Tensor& weight, LayerCache* cache) {
  const auto kernel = weight.size(1);
  const bool goes_on = cache != nullptr && cache->convolution.defined();
  const at::Tensor before = goes_on ? cache->convolution : at::zeros({kernel - 1, x.size(1)}, x.options());
  const at::Tensor padded = at::cat({before, x}, 0);
  if (cache != nullptr) cache->convolution = padded.slice(0, x.size(0)).clone();
  at::Tensor sum = at::zeros_like(x);
  for (std::int64_t j = 0; j < kernel; ++j) sum.addcmul_(padded.narrow(0, j, x.size(0)), weight.select(1, j));
  return held(numerics, at::silu(held(numerics, sum)));
}

at::Tensor unit_length(const at::Tensor& x) { return x * ((x * x).sum(-1, /*keepdim=*/true) + 1e-6).rsqrt(); }

/// The rule by the fastest kernel that there is.
std::pair<at::Tensor, at::Tensor> fast_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& decay,
                                            const at::Tensor& beta, at::Tensor state) {
  at::Tensor out = at::empty(v.sizes(), v.options());
  kernels::delta_rule(q.contiguous(), k.contiguous(), v.contiguous(), decay, beta, state, out);
  return {out, state};
}

}  // namespace

at::Tensor delta_sequence(const TileContext& context, const DeltaWeights& weights, const at::Tensor& rows, LayerCache* cache,
                          DeltaRule rule) {
  const DeltaSizes& sizes = context.model.delta;
  const Numerics& numerics = context.numerics;
  const auto length = rows.size(0);
  const auto keys = sizes.key_heads * sizes.key_dim;
  const auto values = sizes.value_heads * sizes.value_dim;
  const at::Tensor mixed = causal_convolution(numerics, rows.narrow(1, 0, 2 * keys + values), weights.convolution, cache);
  const auto heads = [&](std::int64_t from, std::int64_t width, std::int64_t count) {
    return mixed.narrow(1, from, width).reshape({length, count, -1});
  };
  const at::Tensor q = unit_length(heads(0, keys, sizes.key_heads)) / std::sqrt(static_cast<double>(sizes.key_dim));
  const at::Tensor k = unit_length(heads(keys, keys, sizes.key_heads));
  const at::Tensor v = heads(2 * keys, values, sizes.value_heads);
  const at::Tensor z = rows.narrow(1, 2 * keys + values, values).reshape({length, sizes.value_heads, -1});
  const at::Tensor gates = rows.narrow(1, 2 * keys + 2 * values, 2 * sizes.value_heads);
  const at::Tensor beta = held(numerics, gates.narrow(1, 0, sizes.value_heads).sigmoid()).contiguous();
  const at::Tensor time = gates.narrow(1, sizes.value_heads, sizes.value_heads) + weights.time_bias;
  const at::Tensor decay = (-weights.decay.exp() * at::softplus(time)).contiguous();
  at::Tensor state = cache != nullptr && cache->state.defined()
                         ? cache->state
                         : at::zeros({sizes.value_heads, sizes.key_dim, sizes.value_dim}, rows.options());
  auto [out, after] = rule(q, k, v, decay, beta, state);
  if (cache != nullptr) cache->state = after;
  out = held(numerics, out);
  const at::Tensor scale = (out.square().mean(-1, /*keepdim=*/true) + weights.norm.epsilon).rsqrt();
  const at::Tensor normed = held(numerics, weights.norm.weight * held(numerics, out * scale));
  return (normed * at::silu(z)).reshape({length, values});
}

at::Tensor delta_net(const TileContext& context, const DeltaWeights& weights, std::span<const SequencePart> parts,
                     const at::Tensor& normed, TileScratch& scratch, const ForEach& for_each) {
  at::Tensor input = linear(normed, weights.input, {}, scratch.qkv);
  kernels::round_product(context.numerics, input);
  const auto rows = normed.size(0);
  const auto width = context.model.length(Axis::delta_values);
  at::Tensor mixed = grow(scratch.attended, rows, width, context.numerics.tile(), context.device).narrow(0, 0, rows);
  std::vector<std::int64_t> begins{0};
  for (const auto& part : parts) begins.push_back(begins.back() + part.length);
  for_each(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i) {
    const SequencePart& part = parts[static_cast<std::size_t>(i)];
    const auto begin = begins[static_cast<std::size_t>(i)];
    const at::Tensor own = input.narrow(0, begin, part.length).to(context.numerics.wide());
    mixed.narrow(0, begin, part.length).copy_(delta_sequence(context, weights, own, part.cache, fast_rule));
  });
  kernels::round_product(context.numerics, mixed);
  return mixed;
}

}  // namespace moetrim
