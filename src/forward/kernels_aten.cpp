// LibTorch forms of the kernels. Written for clarity: each mirrors the rounding of the CPU loops operator by operator.

#include "forward/kernels_aten.h"

#include <ATen/ATen.h>

namespace moetrim::kernels::aten {

namespace {

/// Rounds fp32 values to what the run stores.
at::Tensor rounded(const Numerics& numerics, const at::Tensor& x) {
  return numerics.precision == Precision::bf16 ? x.to(at::kBFloat16).to(at::kFloat) : x;
}

at::Tensor product(const Numerics& numerics, const at::Tensor& x) { return rounded(numerics, x.to(at::kFloat)); }

at::Tensor normalised(const Numerics& numerics, const at::Tensor& x, const Norm& norm) {
  const at::Tensor values = x.to(at::kFloat);
  if (norm.bias.defined()) {
    const at::Tensor centred = values - values.mean(-1, /*keepdim=*/true);
    const at::Tensor scale = (centred.square().mean(-1, /*keepdim=*/true) + norm.epsilon).rsqrt();
    return rounded(numerics, centred * scale * norm.weight + norm.bias);
  }
  const at::Tensor scaled = values * (values.square().mean(-1, /*keepdim=*/true) + norm.epsilon).rsqrt();
  if (!norm.weight.defined()) return rounded(numerics, scaled);
  return rounded(numerics, norm.weight * (norm.kind == NormKind::rms ? rounded(numerics, scaled) : scaled));
}

at::Tensor rotated(const Numerics& numerics, const at::Tensor& heads, const Rotation& rotation) {
  const auto half = rotation.cosine.size(-1);
  const at::Tensor turned = heads.slice(-1, 0, 2 * half);
  const bool neighbours = rotation.pairs == RopePairs::neighbours;
  const at::Tensor low = neighbours ? turned.slice(-1, 0, 2 * half, 2) : turned.slice(-1, 0, half);
  const at::Tensor high = neighbours ? turned.slice(-1, 1, 2 * half, 2) : turned.slice(-1, half, 2 * half);
  const at::Tensor c = rotation.cosine.unsqueeze(1);
  const at::Tensor s = rotation.sine.unsqueeze(1);
  const auto step = [&](const at::Tensor& x) { return rotation.in_fp32 ? x : rounded(numerics, x); };
  const at::Tensor first = rounded(numerics, step(low * c) - step(high * s));
  const at::Tensor second = rounded(numerics, step(high * c) + step(low * s));
  const at::Tensor joined = neighbours ? at::stack({first, second}, -1).flatten(-2) : at::cat({first, second}, -1);
  return at::cat({joined, heads.slice(-1, 2 * half)}, -1);
}

}  // namespace

void norm_rows(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out) {
  out.copy_(normalised(numerics, x, norm));
}

void norm_product(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out) {
  out.copy_(normalised(numerics, product(numerics, x), norm));
}

void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const Rotation& rotation) {
  const auto queries = layout.heads * layout.head_dim;
  const auto keys = layout.key_value_heads * layout.head_dim;
  const auto length = qkv.size(0);
  const bool after = layout.norm == QueryKeyNorm::per_head_after_rope || layout.norm == QueryKeyNorm::unit_after_rope;
  const auto prepare = [&](std::int64_t begin, std::int64_t width, const Norm* norm) {
    at::Tensor part = product(numerics, qkv.slice(1, begin, begin + width));
    if (norm != nullptr && layout.norm == QueryKeyNorm::full) part = normalised(numerics, part, *norm);
    if (layout.clip > 0) part = rounded(numerics, part.clamp(-layout.clip, layout.clip));
    part = part.view({length, -1, layout.head_dim});
    if (norm != nullptr && layout.norm == QueryKeyNorm::per_head) part = normalised(numerics, part, *norm);
    if (norm != nullptr && rotation.cosine.defined()) part = rotated(numerics, part, rotation);
    if (norm != nullptr && after) part = normalised(numerics, part, *norm);
    qkv.slice(1, begin, begin + width).copy_(part.reshape({length, width}));
  };
  prepare(0, queries, &layout.query_norm);
  prepare(queries, keys, &layout.key_norm);
  prepare(queries + keys, keys, nullptr);
  at::Tensor rest = qkv.slice(1, queries + 2 * keys);
  rest.copy_(product(numerics, rest));
}

void rotate_heads(const Numerics& numerics, at::Tensor& x, const Rotation& rotation) {
  x.copy_(rotated(numerics, x.to(at::kFloat), rotation));
}

void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta, double scale) {
  at::Tensor step = product(numerics, delta);
  if (scale != 1.0) step = rounded(numerics, step * scale);
  hidden.copy_(hidden.to(at::kFloat) + step);
}

void gather_rows(const Numerics&, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out) {
  out.copy_(x.index_select(0, rows));
}

void gated_silu(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out) {
  const auto width = out.size(1);
  const at::Tensor gate = product(numerics, gate_up.slice(1, 0, width));
  const at::Tensor up = product(numerics, gate_up.slice(1, width, 2 * width));
  out.copy_(rounded(numerics, at::silu(gate)) * up);
  if (numerics.bf16_in_fp32) out.copy_(rounded(numerics, out));
}

void clamped_swiglu(const Numerics& numerics, const at::Tensor& gate_up, double limit, double alpha, at::Tensor& out) {
  const auto width = out.size(1);
  const at::Tensor gate = product(numerics, gate_up.slice(1, 0, width)).clamp_max(limit);
  const at::Tensor up = product(numerics, gate_up.slice(1, width, 2 * width)).clamp(-limit, limit);
  const at::Tensor sigmoid = rounded(numerics, at::sigmoid(rounded(numerics, gate * alpha)));
  out.copy_(rounded(numerics, rounded(numerics, up + 1) * rounded(numerics, gate * sigmoid)));
}

void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs) {
  const at::Tensor values = product(numerics, f);
  norms.copy_(values.square().sum(1).sqrt());
  max_abs.copy_(values.abs().amax(1));
  // Rows do not repeat within a tile, so that adding has one order.
  sum.index_add_(0, rows, values * gates.unsqueeze(1));
}

void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns, double scale) {
  const at::Tensor before = hidden.to(at::kFloat);
  const at::Tensor after = (before + scale * routed).to(at::kDouble);
  const at::Tensor wide = before.to(at::kDouble);
  const at::Tensor lengths = wide.square().sum(1).sqrt() * after.square().sum(1).sqrt();
  const at::Tensor turn = 1.0 - (wide * after).sum(1) / lengths;
  turns.copy_(at::where(lengths == 0, at::zeros_like(turn), turn.clamp_min(0)));
  at::Tensor delta = rounded(numerics, routed);
  if (shared.defined()) delta = rounded(numerics, delta + shared.to(at::kFloat));
  if (scale != 1.0) delta = rounded(numerics, delta * scale);
  hidden.copy_(before + delta);
}

void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out) {
  const at::Tensor factor = rounded(numerics, at::sigmoid(product(numerics, gate)));
  out.copy_(rounded(numerics, factor * product(numerics, x)));
}

void delta_rule(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& decay,
                const at::Tensor& beta, at::Tensor& state, at::Tensor& out) {
  const auto shared = values.size(1) / keys.size(1);
  const at::Tensor q = queries.repeat_interleave(shared, 1);
  const at::Tensor k = keys.repeat_interleave(shared, 1);
  for (std::int64_t t = 0; t < values.size(0); ++t) {
    state.mul_(decay[t].exp().view({-1, 1, 1}));
    const at::Tensor seen = at::bmm(k[t].unsqueeze(1), state).squeeze(1);
    const at::Tensor delta = (values[t] - seen) * beta[t].unsqueeze(1);
    state.add_(at::bmm(k[t].unsqueeze(2), delta.unsqueeze(1)));
    out[t].copy_(at::bmm(q[t].unsqueeze(1), state).squeeze(1));
  }
}

void round_product(const Numerics& numerics, at::Tensor& x) {
  if (numerics.bf16_in_fp32) x.copy_(rounded(numerics, x));
}

}  // namespace moetrim::kernels::aten
