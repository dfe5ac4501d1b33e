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

at::Tensor normalised(const Numerics& numerics, const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const at::Tensor values = x.to(at::kFloat);
  const at::Tensor scale = (values.square().mean(-1, /*keepdim=*/true) + epsilon).rsqrt();
  return rounded(numerics, weight * rounded(numerics, values * scale));
}

at::Tensor rotated(const Numerics& numerics, const at::Tensor& heads, const at::Tensor& cosine, const at::Tensor& sine) {
  const auto half = cosine.size(-1);
  const at::Tensor low = heads.slice(-1, 0, half);
  const at::Tensor high = heads.slice(-1, half, 2 * half);
  const at::Tensor c = cosine.unsqueeze(1);
  const at::Tensor s = sine.unsqueeze(1);
  return at::cat({rounded(numerics, rounded(numerics, low * c) + rounded(numerics, -high * s)),
                  rounded(numerics, rounded(numerics, high * c) + rounded(numerics, low * s)),
                  heads.slice(-1, 2 * half)}, -1);
}

}  // namespace

void norm_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& weight, double epsilon, at::Tensor& out) {
  out.copy_(normalised(numerics, x, weight, epsilon));
}

void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const at::Tensor& cosine,
                 const at::Tensor& sine) {
  const auto queries = layout.heads * layout.head_dim;
  const auto keys = layout.key_value_heads * layout.head_dim;
  const auto length = qkv.size(0);
  const auto prepare = [&](std::int64_t begin, std::int64_t width, const at::Tensor& weight, bool rotate) {
    at::Tensor part = product(numerics, qkv.slice(1, begin, begin + width));
    if (rotate && layout.norm == QueryKeyNorm::full) part = normalised(numerics, part, weight, layout.epsilon);
    if (layout.clip > 0) part = rounded(numerics, part.clamp(-layout.clip, layout.clip));
    part = part.view({length, -1, layout.head_dim});
    if (rotate && layout.norm == QueryKeyNorm::per_head) part = normalised(numerics, part, weight, layout.epsilon);
    if (rotate) part = rotated(numerics, part, cosine, sine);
    qkv.slice(1, begin, begin + width).copy_(part.reshape({length, width}));
  };
  prepare(0, queries, layout.query_norm, true);
  prepare(queries, keys, layout.key_norm, true);
  prepare(queries + keys, keys, {}, false);
}

void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta) {
  hidden.copy_(hidden.to(at::kFloat) + product(numerics, delta));
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

void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs) {
  const at::Tensor values = product(numerics, f);
  norms.copy_(values.square().sum(1).sqrt());
  max_abs.copy_(values.abs().amax(1));
  // Rows do not repeat within a tile, so that adding has one order.
  sum.index_add_(0, rows, values * gates.unsqueeze(1));
}

void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns) {
  const at::Tensor before = hidden.to(at::kFloat);
  const at::Tensor after = (before + routed).to(at::kDouble);
  const at::Tensor wide = before.to(at::kDouble);
  const at::Tensor lengths = wide.square().sum(1).sqrt() * after.square().sum(1).sqrt();
  const at::Tensor turn = 1.0 - (wide * after).sum(1) / lengths;
  turns.copy_(at::where(lengths == 0, at::zeros_like(turn), turn.clamp_min(0)));
  at::Tensor delta = rounded(numerics, routed);
  if (shared.defined()) delta = rounded(numerics, delta + shared.to(at::kFloat));
  hidden.copy_(before + delta);
}

void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out) {
  const at::Tensor factor = rounded(numerics, at::sigmoid(product(numerics, gate)));
  out.copy_(rounded(numerics, factor * product(numerics, x)));
}

void round_product(const Numerics& numerics, at::Tensor& x) {
  if (numerics.bf16_in_fp32) x.copy_(rounded(numerics, x));
}

}  // namespace moetrim::kernels::aten
