// LibTorch forms of the kernels. Written for clarity: each mirrors the rounding of the CPU loops operator by operator.

#include "forward/kernels_aten.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace moetrim::kernels::aten {

namespace {

/// Rounds wide values to what the run stores.
at::Tensor rounded(const Numerics& numerics, const at::Tensor& x) {
  return numerics.precision == Precision::bf16 ? x.to(at::kBFloat16).to(at::kFloat) : x;
}

at::Tensor product(const Numerics& numerics, const at::Tensor& x) { return rounded(numerics, x.to(numerics.wide())); }

}  // namespace

at::Tensor normalised(const Numerics& numerics, const at::Tensor& x, const Norm& norm) {
  const at::Tensor values = x.to(numerics.wide());
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

void norm_rows(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out) {
  out.copy_(normalised(numerics, x, norm));
}

void norm_product(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out) {
  out.copy_(normalised(numerics, product(numerics, x), norm));
}

at::Tensor rotated_rows(const Numerics& numerics, const at::Tensor& qkv, const HeadLayout& layout, const Rotation& rotation) {
  const auto queries = layout.heads * layout.head_dim;
  const auto keys = layout.key_value_heads * layout.head_dim;
  const auto length = qkv.size(0);
  const bool after = layout.norm == QueryKeyNorm::per_head_after_rope || layout.norm == QueryKeyNorm::unit_after_rope;
  const auto prepared = [&](std::int64_t begin, std::int64_t width, const Norm* norm) {
    at::Tensor part = product(numerics, qkv.slice(1, begin, begin + width));
    if (norm != nullptr && layout.norm == QueryKeyNorm::full) part = normalised(numerics, part, *norm);
    if (layout.clip > 0) part = rounded(numerics, part.clamp(-layout.clip, layout.clip));
    part = part.view({length, -1, layout.head_dim});
    if (norm != nullptr && layout.norm == QueryKeyNorm::per_head) part = normalised(numerics, part, *norm);
    if (norm != nullptr && rotation.cosine.defined()) part = rotated(numerics, part, rotation);
    if (norm != nullptr && after) part = normalised(numerics, part, *norm);
    return part.reshape({length, width});
  };
  return at::cat({prepared(0, queries, &layout.query_norm), prepared(queries, keys, &layout.key_norm),
                  prepared(queries + keys, keys, nullptr), product(numerics, qkv.slice(1, queries + 2 * keys))}, 1);
}

void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const Rotation& rotation) {
  qkv.copy_(rotated_rows(numerics, qkv, layout, rotation));
}

void rotate_heads(const Numerics& numerics, at::Tensor& x, const Rotation& rotation) {
  x.copy_(rotated(numerics, x.to(numerics.wide()), rotation));
}

void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta, double scale) {
  at::Tensor step = product(numerics, delta);
  if (scale != 1.0) step = rounded(numerics, step * scale);
  hidden.copy_(hidden.to(numerics.wide()) + step);
}

void gather_rows(const Numerics&, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out) {
  out.copy_(x.index_select(0, rows));
}

at::Tensor silu_times(const Numerics& numerics, const at::Tensor& gate_up) {
  const auto width = gate_up.size(1) / 2;
  const at::Tensor gate = product(numerics, gate_up.slice(1, 0, width));
  const at::Tensor up = product(numerics, gate_up.slice(1, width, 2 * width));
  return rounded(numerics, rounded(numerics, at::silu(gate)) * up);
}

at::Tensor swiglu(const Numerics& numerics, const at::Tensor& gate_up, double limit, double alpha) {
  const auto width = gate_up.size(1) / 2;
  const at::Tensor gate = product(numerics, gate_up.slice(1, 0, width)).clamp_max(limit);
  const at::Tensor up = product(numerics, gate_up.slice(1, width, 2 * width)).clamp(-limit, limit);
  const at::Tensor sigmoid = rounded(numerics, at::sigmoid(rounded(numerics, gate * alpha)));
  return rounded(numerics, rounded(numerics, up + 1) * rounded(numerics, gate * sigmoid));
}

void gated_silu(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out) { out.copy_(silu_times(numerics, gate_up)); }

void clamped_swiglu(const Numerics& numerics, const at::Tensor& gate_up, double limit, double alpha, at::Tensor& out) {
  out.copy_(swiglu(numerics, gate_up, limit, alpha));
}

void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs) {
  const at::Tensor values = product(numerics, f);
  norms.copy_(values.square().sum(1).sqrt());
  max_abs.copy_(values.abs().amax(1));
  // Rows do not repeat within a tile, so that adding has one order.
  sum.index_add_(0, rows, values * gates.unsqueeze(1));
}

void scatter_pairs(const Numerics& numerics, const at::Tensor& f, const LayerPairs& pairs, std::int64_t first, at::Tensor& sum,
                   at::Tensor& norms, at::Tensor& max_abs) {
  const auto count = f.size(0);
  const at::Tensor values = product(numerics, f);
  norms.narrow(0, first, count).copy_(values.square().sum(1).sqrt());
  max_abs.narrow(0, first, count).copy_(values.abs().amax(1));
  const at::Tensor gated = values * pairs.gates.narrow(0, first, count).unsqueeze(1);
  // A token comes once among the n-th pairs of all tokens, so that adding has one order.
  for (std::int64_t slot = 0; slot < pairs.places.size(1); ++slot) {
    const at::Tensor rows = pairs.places.select(1, slot) - first;
    const at::Tensor tokens = (rows.ge(0).logical_and(rows.lt(count))).nonzero().squeeze(1);
    sum.index_add_(0, tokens, gated.index_select(0, rows.index_select(0, tokens)));
  }
}

void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns, double scale) {
  const at::Tensor before = hidden.to(numerics.wide());
  const at::Tensor after = (before + scale * routed).to(at::kDouble);
  const at::Tensor wide = before.to(at::kDouble);
  const at::Tensor lengths = wide.square().sum(1).sqrt() * after.square().sum(1).sqrt();
  const at::Tensor turn = 1.0 - (wide * after).sum(1) / lengths;
  turns.copy_(at::where(lengths == 0, at::zeros_like(turn), turn.clamp_min(0)));
  at::Tensor delta = rounded(numerics, routed);
  if (shared.defined()) delta = rounded(numerics, delta + shared.to(numerics.wide()));
  if (scale != 1.0) delta = rounded(numerics, delta * scale);
  hidden.copy_(before + delta);
}

void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out) {
  const at::Tensor factor = rounded(numerics, at::sigmoid(product(numerics, gate)));
  out.copy_(rounded(numerics, factor * product(numerics, x)));
}

namespace {

/// Tokens of a chunk: enough rows for fast products, few enough that [chunk, chunk] matrices stay small.
constexpr std::int64_t kChunk = 64;

/// One chunk of C tokens. With D[i, j] = exp(sum of the decays of j + 1 … i) and S the state before, the values d that the rule
/// writes solve (1 + tril(beta D K KT, -1)) d = beta (V - exp(decay so far) K S), since a write sees all writes before it.
std::pair<at::Tensor, at::Tensor> delta_chunk(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                              const at::Tensor& decay, const at::Tensor& beta, const at::Tensor& state) {
  const auto length = q.size(1);
  const at::Tensor so_far = decay.cumsum(1).unsqueeze(2);  // [P, C, 1]
  const at::Tensor seen = at::ones({length, length}, q.options().dtype(at::kBool)).tril();
  // Masked before exp: what lies ahead would overflow, and spoil the gradient.
  const at::Tensor between = (so_far - so_far.transpose(1, 2)).masked_fill(seen.logical_not(), 0).exp() * seen;
  const at::Tensor kept = so_far.exp();
  const at::Tensor factor = beta.unsqueeze(2);
  const at::Tensor system = (factor * between * at::bmm(k, k.transpose(1, 2))).tril(-1);
  const at::Tensor identity = at::eye(length, q.options());
  const at::Tensor written = at::linalg_solve_triangular(system + identity, factor * (v - kept * at::bmm(k, state)),
                                                         /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
  const at::Tensor out = kept * at::bmm(q, state) + at::bmm(between * at::bmm(q, k.transpose(1, 2)), written);
  const at::Tensor last = so_far.slice(1, length - 1);
  const at::Tensor after = last.exp() * state + at::bmm((k * (last - so_far).exp()).transpose(1, 2), written);
  return {out, after};
}

}  // namespace

std::pair<at::Tensor, at::Tensor> delta_rule_chunks(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                                                    const at::Tensor& decay, const at::Tensor& beta, at::Tensor state) {
  const auto shared = values.size(1) / keys.size(1);
  const at::Tensor q = queries.repeat_interleave(shared, 1).transpose(0, 1);
  const at::Tensor k = keys.repeat_interleave(shared, 1).transpose(0, 1);
  const at::Tensor v = values.transpose(0, 1);
  std::vector<at::Tensor> outs;
  for (std::int64_t begin = 0; begin < values.size(0); begin += kChunk) {
    const auto count = std::min(kChunk, values.size(0) - begin);
    const auto rows = [&](const at::Tensor& x) { return x.narrow(1, begin, count); };
    auto [out, after] = delta_chunk(rows(q), rows(k), rows(v), rows(decay.t()), rows(beta.t()), state);
    outs.push_back(std::move(out));
    state = std::move(after);
  }
  return {at::cat(outs, 1).transpose(0, 1), state};
}

void delta_rule(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& decay,
                const at::Tensor& beta, at::Tensor& state, at::Tensor& out) {
  const auto result = delta_rule_chunks(queries, keys, values, decay, beta, state);
  out.copy_(result.first);
  state.copy_(result.second);
}

void reverse_atoms(const Numerics& numerics, const GatedUnit& unit, const at::Tensor& activated, const at::Tensor& of_activated,
                   const at::Tensor& gates, at::Tensor& gate_up, at::Tensor& products, at::Tensor& sums) {
  const auto width = activated.size(1);
  const auto wide = [&](const at::Tensor& x) { return x.to(numerics.wide()); };
  const at::Tensor x = wide(activated);
  const at::Tensor c = wide(of_activated) * gates.unsqueeze(1);
  products.copy_((x * wide(of_activated)).sum(1));
  const at::Tensor x2 = x.to(at::kDouble).square();
  const at::Tensor c2 = c.to(at::kDouble).square();
  sums.add_(at::stack({x2.sum(0), c2.sum(0), (x2 * c2).sum(0)}).to(sums.device()));
  const at::Tensor gate = wide(gate_up.slice(1, 0, width));
  const at::Tensor up = wide(gate_up.slice(1, width));
  const at::Tensor low = gate.clamp_max(unit.limit);
  const at::Tensor share = at::sigmoid(low * unit.alpha);
  const at::Tensor factor = up.clamp(-unit.limit, unit.limit) + unit.offset;
  const at::Tensor of_gate = c * factor * share * (1 + low * unit.alpha * (1 - share)) * (gate <= unit.limit);
  const at::Tensor of_up = c * low * share * (up.abs() <= unit.limit);
  gate_up.copy_(at::cat({of_gate, of_up}, 1));
}

void round_product(const Numerics& numerics, at::Tensor& x) {
  if (numerics.bf16_in_fp32) x.copy_(rounded(numerics, x));
}

}  // namespace moetrim::kernels::aten
