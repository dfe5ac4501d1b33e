// Chooses the form of a kernel: CPU loops by instruction set, CUDA kernels, or LibTorch operators.

#include "forward/kernels.h"

#include <ATen/ATen.h>

#include "forward/cuda_library.h"
#include "forward/kernels_aten.h"
#include "forward/kernels_cpu.h"
#include "matrix/matrix_product.h"

namespace moetrim::kernels {

namespace {

const CpuTable& table(const Numerics& numerics) {
  static const CpuTable* const tables = [] {
#ifdef __x86_64__
    if (matrix::instruction_set() == matrix::InstructionSet::avx512) return tables_avx512();
    if (matrix::instruction_set() == matrix::InstructionSet::avx2) return tables_avx2();
#endif
    return tables_baseline();
  }();
  if (numerics.precision == Precision::fp32) return tables[kFp32];
  return tables[numerics.bf16_in_fp32 ? kBf16InFp32 : kBf16];
}

/// Whether the CPU loops can work on it: they know fp32 and bf16.
bool has_loops(const at::Tensor& x) { return x.is_cpu() && x.scalar_type() != at::kDouble; }

/// The CUDA kernels know the same two; null where they do not work.
const cuda::Kernels* on_cuda(const at::Tensor& x) {
  return x.is_cuda() && x.scalar_type() != at::kDouble ? &cuda::library().kernels : nullptr;
}

}  // namespace

void multiply(const at::Tensor& x, const at::Tensor& weight, at::Tensor& out, const at::Tensor& added) {
  if (!x.is_cpu() || x.scalar_type() != at::kFloat) {
    added.defined() ? at::addmm_out(out, added, x, weight.t()) : at::mm_out(out, x, weight.t());
    return;
  }
  if (added.defined() && !added.is_same(out)) out.copy_(added.expand(out.sizes()));
  const bool rows_of_x = x.stride(1) == 1 || x.size(1) == 1;
  const bool as_stored = weight.stride(1) == 1 || weight.size(1) == 1;
  const bool columns_of_weight = weight.stride(0) == 1 || weight.size(0) == 1;
  const at::Tensor a = rows_of_x ? x : x.contiguous();
  const at::Tensor b = as_stored || columns_of_weight ? weight : weight.contiguous();
  const bool transposed = !as_stored && columns_of_weight;
  const matrix::ProductArguments arguments{.x = a.const_data_ptr<float>(),
                                           .x_stride = a.stride(0),
                                           .weight = b.const_data_ptr(),
                                           .weight_stride = b.stride(transposed ? 1 : 0),
                                           .transposed = transposed,
                                           .out = out.mutable_data_ptr<float>(),
                                           .out_stride = out.stride(0),
                                           .add = added.defined(),
                                           .rows = a.size(0),
                                           .columns = b.size(0),
                                           .depth = a.size(1)};
  (b.scalar_type() == at::kBFloat16 ? matrix::product_bf16 : matrix::product)(arguments);
}

void norm_rows(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out) {
  if (const auto* device = on_cuda(x)) return device->norm_rows(numerics, x, norm, out);
  if (!has_loops(x)) return aten::norm_rows(numerics, x, norm, out);
  table(numerics).norm_rows(x.const_data_ptr(), x.stride(0), arguments(norm), x.size(0), x.size(1), out.mutable_data_ptr());
}

void norm_product(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out) {
  if (const auto* device = on_cuda(x)) return device->norm_product(numerics, x, norm, out);
  if (!has_loops(x)) return aten::norm_product(numerics, x, norm, out);
  out.copy_(x);
  const auto width = out.size(1);
  for (std::int64_t t = 0; t < out.size(0); ++t) {
    auto* row = static_cast<std::byte*>(out.mutable_data_ptr()) + t * out.stride(0) * static_cast<std::int64_t>(out.element_size());
    table(numerics).round(row, width);
    table(numerics).norm_tile(row, arguments(norm), width);
  }
}

void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const Rotation& rotation) {
  if (const auto* device = on_cuda(qkv)) return device->rotate_rows(numerics, qkv, layout, rotation);
  if (!has_loops(qkv)) return aten::rotate_rows(numerics, qkv, layout, rotation);
  const CpuTable& loops = table(numerics);
  const auto width = qkv.size(1);
  const auto queries = layout.heads * layout.head_dim;
  const auto keys = layout.key_value_heads * layout.head_dim;
  const auto rotated = queries + keys;
  const bool turns = rotation.cosine.defined();
  const auto half = turns ? rotation.cosine.size(1) : 0;
  const auto element = static_cast<std::int64_t>(qkv.element_size());
  const auto limit = static_cast<float>(layout.clip);
  const bool after = layout.norm == QueryKeyNorm::per_head_after_rope || layout.norm == QueryKeyNorm::unit_after_rope;
  for (std::int64_t t = 0; t < qkv.size(0); ++t) {
    auto* row = static_cast<std::byte*>(qkv.mutable_data_ptr()) + t * width * element;
    loops.round(row, width);
    if (layout.norm == QueryKeyNorm::full) {
      loops.norm_tile(row, arguments(layout.query_norm), queries);
      loops.norm_tile(row + queries * element, arguments(layout.key_norm), keys);
    }
    if (layout.clip > 0) loops.clamp(row, limit, queries + 2 * keys);
    for (std::int64_t at = 0; at < rotated; at += layout.head_dim) {
      auto* head = row + at * element;
      const NormArguments norm = arguments(at < queries ? layout.query_norm : layout.key_norm);
      if (layout.norm == QueryKeyNorm::per_head) loops.norm_tile(head, norm, layout.head_dim);
      if (turns) {
        loops.rotate(head, rotation.cosine.const_data_ptr<float>() + t * half, rotation.sine.const_data_ptr<float>() + t * half,
                     half, rotation.pairs == RopePairs::neighbours, rotation.in_fp32);
      }
      if (after) loops.norm_tile(head, norm, layout.head_dim);
    }
  }
}

void rotate_heads(const Numerics& numerics, at::Tensor& x, const Rotation& rotation) {
  if (const auto* device = on_cuda(x)) return device->rotate_heads(numerics, x, rotation);
  if (!has_loops(x)) return aten::rotate_heads(numerics, x, rotation);
  const auto half = rotation.cosine.size(1);
  const auto element = static_cast<std::int64_t>(x.element_size());
  auto* start = static_cast<std::byte*>(x.mutable_data_ptr());
  for (std::int64_t t = 0; t < x.size(0); ++t) {
    for (std::int64_t h = 0; h < x.size(1); ++h) {
      table(numerics).rotate(start + (t * x.stride(0) + h * x.stride(1)) * element,
                             rotation.cosine.const_data_ptr<float>() + t * half,
                             rotation.sine.const_data_ptr<float>() + t * half, half,
                             rotation.pairs == RopePairs::neighbours, rotation.in_fp32);
    }
  }
}

void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta, double scale) {
  if (const auto* device = on_cuda(hidden)) return device->add_rows(numerics, hidden, delta, scale);
  if (!has_loops(hidden)) return aten::add_rows(numerics, hidden, delta, scale);
  table(numerics).add(hidden.mutable_data_ptr(), delta.const_data_ptr(), hidden.numel(), static_cast<float>(scale));
}

void gather_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out) {
  if (const auto* device = on_cuda(x)) return device->gather_rows(numerics, x, rows, out);
  if (!has_loops(x)) return aten::gather_rows(numerics, x, rows, out);
  table(numerics).gather(x.const_data_ptr(), rows.const_data_ptr<std::int32_t>(), rows.size(0), x.size(1),
                         out.mutable_data_ptr());
}

void gated_silu(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out) {
  if (const auto* device = on_cuda(out)) return device->gated_silu(numerics, gate_up, out);
  if (!has_loops(out)) return aten::gated_silu(numerics, gate_up, out);
  table(numerics).gated_silu(gate_up.const_data_ptr(), out.size(0), out.size(1), out.mutable_data_ptr());
}

void clamped_swiglu(const Numerics& numerics, const at::Tensor& gate_up, double limit, double alpha, at::Tensor& out) {
  if (const auto* device = on_cuda(out)) return device->clamped_swiglu(numerics, gate_up, limit, alpha, out);
  if (!has_loops(out)) return aten::clamped_swiglu(numerics, gate_up, limit, alpha, out);
  table(numerics).clamped_swiglu(gate_up.const_data_ptr(), out.size(0), out.size(1), static_cast<float>(limit),
                                 static_cast<float>(alpha), out.mutable_data_ptr());
}

void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs) {
  if (const auto* device = on_cuda(f)) return device->scatter_rows(numerics, f, rows, gates, sum, norms, max_abs);
  if (!has_loops(f)) return aten::scatter_rows(numerics, f, rows, gates, sum, norms, max_abs);
  table(numerics).scatter(f.const_data_ptr(), rows.const_data_ptr<std::int32_t>(), gates.const_data_ptr<float>(), f.size(0),
                          f.size(1), sum.mutable_data_ptr<float>(), norms.mutable_data_ptr<float>(),
                          max_abs.mutable_data_ptr<float>());
}

void scatter_pairs(const Numerics& numerics, const at::Tensor& f, const LayerPairs& pairs, std::int64_t first, at::Tensor& sum,
                   at::Tensor& norms, at::Tensor& max_abs) {
  if (const auto* device = on_cuda(f)) return device->scatter_pairs(numerics, f, pairs, first, sum, norms, max_abs);
  if (!has_loops(f)) return aten::scatter_pairs(numerics, f, pairs, first, sum, norms, max_abs);
  // One row after another: what repeats is added in order.
  table(numerics).scatter(f.const_data_ptr(), pairs.tokens.const_data_ptr<std::int32_t>() + first,
                          pairs.gates.const_data_ptr<float>() + first, f.size(0), f.size(1), sum.mutable_data_ptr<float>(),
                          norms.mutable_data_ptr<float>() + first, max_abs.mutable_data_ptr<float>() + first);
}

void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns, double scale) {
  if (const auto* device = on_cuda(hidden)) return device->finish_rows(numerics, hidden, routed, shared, turns, scale);
  if (!has_loops(hidden)) return aten::finish_rows(numerics, hidden, routed, shared, turns, scale);
  table(numerics).finish(hidden.mutable_data_ptr(), routed.const_data_ptr<float>(),
                         shared.defined() ? shared.const_data_ptr() : nullptr, hidden.size(0), hidden.size(1),
                         turns.mutable_data_ptr<double>(), static_cast<float>(scale));
}

void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out) {
  if (const auto* device = on_cuda(x)) return device->gate_rows(numerics, gate, x, out);
  if (!has_loops(x)) return aten::gate_rows(numerics, gate, x, out);
  at::Tensor factor = gate.contiguous().clone();
  round_product(numerics, factor);
  at::sigmoid_(factor);
  round_product(numerics, factor);
  table(numerics).gate(factor.const_data_ptr(), x.const_data_ptr(), x.size(0), x.size(1), out.mutable_data_ptr());
}

void softmax_rows(at::Tensor& x, const std::vector<std::int32_t>& first, const std::vector<std::int32_t>& last, double scale,
                  const std::vector<float>& sinks) {
  table({}).softmax(x.mutable_data_ptr<float>(), x.size(0), x.size(1), first.data(), last.data(), static_cast<float>(scale),
                    sinks.empty() ? nullptr : sinks.data());
}

void delta_rule(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& decay,
                const at::Tensor& beta, at::Tensor& state, at::Tensor& out) {
  if (!has_loops(state)) return aten::delta_rule(queries, keys, values, decay, beta, state, out);
  const auto heads = values.size(1);
  const auto shared = heads / keys.size(1);
  const auto key_dim = keys.size(2);
  const auto value_dim = values.size(2);
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int64_t key = h / shared * key_dim;
    table({}).delta_rule(queries.const_data_ptr<float>() + key, keys.const_data_ptr<float>() + key, keys.stride(0),
                         values.const_data_ptr<float>() + h * value_dim, values.stride(0), decay.const_data_ptr<float>() + h,
                         beta.const_data_ptr<float>() + h, heads, values.size(0), key_dim, value_dim,
                         state.mutable_data_ptr<float>() + h * key_dim * value_dim, out.mutable_data_ptr<float>() + h * value_dim);
  }
}

void reverse_atoms(const Numerics& numerics, const GatedUnit& unit, const at::Tensor& activated, const at::Tensor& of_activated,
                   const at::Tensor& gates, at::Tensor& gate_up, at::Tensor& products, at::Tensor& sums) {
  if (!has_loops(activated) || activated.scalar_type() != at::kFloat) {
    return aten::reverse_atoms(numerics, unit, activated, of_activated, gates, gate_up, products, sums);
  }
  table(numerics).reverse_atoms(activated.const_data_ptr<float>(), of_activated.const_data_ptr<float>(),
                                gates.const_data_ptr<float>(), activated.size(0), activated.size(1),
                                static_cast<float>(unit.limit), static_cast<float>(unit.alpha), static_cast<float>(unit.offset),
                                gate_up.mutable_data_ptr<float>(), products.mutable_data_ptr<float>(),
                                sums.mutable_data_ptr<double>());
}

void round_product(const Numerics& numerics, at::Tensor& x) {
  if (!numerics.bf16_in_fp32) return;
  if (!has_loops(x)) return aten::round_product(numerics, x);
  table(numerics).round(x.mutable_data_ptr(), x.numel());
}

}  // namespace moetrim::kernels
