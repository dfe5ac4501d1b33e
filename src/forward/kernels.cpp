// Chooses the form of a kernel: CPU loops by instruction set, or LibTorch operators.

#include "forward/kernels.h"

#include <ATen/ATen.h>

#include "forward/kernels_aten.h"
#include "forward/kernels_cpu.h"
#ifdef MOETRIM_CUDA
#include "forward/expert_output.h"
#endif

namespace moetrim::kernels {

namespace {

const CpuTable& table(const Numerics& numerics) {
  static const CpuTable* const tables = [] {
#ifdef __x86_64__
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) return tables_avx512();
    if (__builtin_cpu_supports("avx2")) return tables_avx2();
#endif
    return tables_baseline();
  }();
  if (numerics.precision == Precision::fp32) return tables[kFp32];
  return tables[numerics.bf16_in_fp32 ? kBf16InFp32 : kBf16];
}

}  // namespace

void norm_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& weight, double epsilon, at::Tensor& out) {
  if (!x.is_cpu()) return aten::norm_rows(numerics, x, weight, epsilon, out);
  table(numerics).norm_rows(x.const_data_ptr(), x.stride(0), weight.const_data_ptr<float>(), static_cast<float>(epsilon),
                            x.size(0), x.size(1), out.mutable_data_ptr());
}

void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const at::Tensor& cosine,
                 const at::Tensor& sine) {
  if (!qkv.is_cpu()) return aten::rotate_rows(numerics, qkv, layout, cosine, sine);
  const CpuTable& loops = table(numerics);
  const auto width = qkv.size(1);
  const auto queries = layout.heads * layout.head_dim;
  const auto keys = layout.key_value_heads * layout.head_dim;
  const auto rotated = queries + keys;
  const auto half = cosine.size(1);
  const auto element = static_cast<std::int64_t>(qkv.element_size());
  const auto epsilon = static_cast<float>(layout.epsilon);
  const auto limit = static_cast<float>(layout.clip);
  for (std::int64_t t = 0; t < qkv.size(0); ++t) {
    auto* row = static_cast<std::byte*>(qkv.mutable_data_ptr()) + t * width * element;
    loops.round(row, width);
    if (layout.norm == QueryKeyNorm::full) {
      loops.norm_tile(row, layout.query_norm.const_data_ptr<float>(), epsilon, queries);
      loops.norm_tile(row + queries * element, layout.key_norm.const_data_ptr<float>(), epsilon, keys);
    }
    if (layout.clip > 0) loops.clamp(row, limit, width);
    const float* c = cosine.const_data_ptr<float>() + t * half;
    const float* s = sine.const_data_ptr<float>() + t * half;
    for (std::int64_t at = 0; at < rotated; at += layout.head_dim) {
      auto* head = row + at * element;
      if (layout.norm == QueryKeyNorm::per_head) {
        const at::Tensor& weight = at < queries ? layout.query_norm : layout.key_norm;
        loops.norm_tile(head, weight.const_data_ptr<float>(), epsilon, layout.head_dim);
      }
      loops.rotate(head, c, s, half);
    }
  }
}

void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta) {
  if (!hidden.is_cpu()) return aten::add_rows(numerics, hidden, delta);
  table(numerics).add(hidden.mutable_data_ptr(), delta.const_data_ptr(), hidden.numel());
}

void gather_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out) {
  if (!x.is_cpu()) return aten::gather_rows(numerics, x, rows, out);
  table(numerics).gather(x.const_data_ptr(), rows.const_data_ptr<std::int32_t>(), rows.size(0), x.size(1),
                         out.mutable_data_ptr());
}

void gated_silu(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out) {
  if (!out.is_cpu()) return aten::gated_silu(numerics, gate_up, out);
  table(numerics).gated_silu(gate_up.const_data_ptr(), out.size(0), out.size(1), out.mutable_data_ptr());
}

void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs) {
#ifdef MOETRIM_CUDA
  if (f.is_cuda()) return expert_output_cuda(f, rows, gates, sum, norms, max_abs);
#endif
  if (!f.is_cpu()) return aten::scatter_rows(numerics, f, rows, gates, sum, norms, max_abs);
  table(numerics).scatter(f.const_data_ptr(), rows.const_data_ptr<std::int32_t>(), gates.const_data_ptr<float>(), f.size(0),
                          f.size(1), sum.mutable_data_ptr<float>(), norms.mutable_data_ptr<float>(),
                          max_abs.mutable_data_ptr<float>());
}

void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns) {
  if (!hidden.is_cpu()) return aten::finish_rows(numerics, hidden, routed, shared, turns);
  table(numerics).finish(hidden.mutable_data_ptr(), routed.const_data_ptr<float>(),
                         shared.defined() ? shared.const_data_ptr() : nullptr, hidden.size(0), hidden.size(1),
                         turns.mutable_data_ptr<double>());
}

void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out) {
  if (!x.is_cpu()) return aten::gate_rows(numerics, gate, x, out);
  at::Tensor factor = gate.contiguous().clone();
  round_product(numerics, factor);
  at::sigmoid_(factor);
  round_product(numerics, factor);
  table(numerics).gate(factor.const_data_ptr(), x.const_data_ptr(), x.size(0), x.size(1), out.mutable_data_ptr());
}

void softmax_rows(at::Tensor& x, const std::vector<std::int32_t>& first, const std::vector<std::int32_t>& last, double scale) {
  table({}).softmax(x.mutable_data_ptr<float>(), x.size(0), x.size(1), first.data(), last.data(), static_cast<float>(scale));
}

void round_product(const Numerics& numerics, at::Tensor& x) {
  if (!numerics.bf16_in_fp32) return;
  if (!x.is_cpu()) return aten::round_product(numerics, x);
  table(numerics).round(x.mutable_data_ptr(), x.numel());
}

}  // namespace moetrim::kernels
