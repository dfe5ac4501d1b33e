// The launches over tensors: checks, pointers and sizes. Knows nothing of CUDA itself, so that the tests can run it on the CPU.

#include "forward/cuda/kernel_table.h"

#include <ATen/ATen.h>

#include "forward/cuda/launch.h"

namespace moetrim::cuda {

namespace {

Element element_of(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "the CUDA kernels know fp32 and bf16");
  return x.scalar_type() == at::kFloat ? Element::fp32 : Element::bf16;
}

/// Tensors that a kernel reads as one run of rows of the same element.
template <class... Tensors>
Element check_rows(const at::Tensor& first, const Tensors&... others) {
  const bool same = ((others.is_contiguous() && others.scalar_type() == first.scalar_type()) && ...);
  TORCH_CHECK(same && first.is_contiguous(), "the CUDA kernels want contiguous rows of one type");
  return element_of(first);
}

void norm_tensor(const Numerics&, const at::Tensor& x, const Norm& norm, at::Tensor& out) {
  TORCH_CHECK(x.stride(1) == 1 && out.stride(1) == 1 && x.scalar_type() == out.scalar_type(), "norm: rows of one type");
  norm_rows(element_of(x), x.const_data_ptr(), x.stride(0), kernels::arguments(norm), x.size(0), x.size(1), out.mutable_data_ptr(),
            out.stride(0), stream_of(x));
  check_launch();
}

HeadSteps rotation_steps(const kernels::Rotation& rotation) {
  if (!rotation.cosine.defined()) return {};
  TORCH_CHECK(rotation.cosine.is_contiguous() && rotation.sine.is_contiguous(), "cosines and sines must be contiguous");
  return {.norm = {},
          .cosine = rotation.cosine.const_data_ptr<float>(),
          .sine = rotation.sine.const_data_ptr<float>(),
          .half = rotation.cosine.size(1),
          .neighbours = rotation.pairs == RopePairs::neighbours,
          .in_fp32 = rotation.in_fp32};
}

/// Heads [first, first + count) of the rows of a product.
void turn_heads(at::Tensor& qkv, const kernels::HeadLayout& layout, std::int64_t first, std::int64_t count, const HeadSteps& steps) {
  if (steps.clip <= 0 && !steps.norm_before && !steps.norm_after && steps.cosine == nullptr) return;
  const std::int64_t before = first * layout.head_dim * static_cast<std::int64_t>(qkv.element_size());
  auto* at = static_cast<std::byte*>(qkv.mutable_data_ptr()) + before;
  rotate_heads(element_of(qkv), at,
               {.tokens = qkv.size(0),
                .heads = count,
                .width = layout.head_dim,
                .token_stride = qkv.stride(0),
                .head_stride = layout.head_dim},
               steps, stream_of(qkv));
  check_launch();
}

void rotate_rows_of(const Numerics& numerics, at::Tensor& qkv, const kernels::HeadLayout& layout,
                    const kernels::Rotation& rotation) {
  TORCH_CHECK(qkv.stride(1) == 1, "queries, keys and values must be rows");
  const std::int64_t queries = layout.heads * layout.head_dim;
  const std::int64_t keys = layout.key_value_heads * layout.head_dim;
  if (layout.norm == QueryKeyNorm::full) {
    at::Tensor of_queries = qkv.narrow(1, 0, queries);
    at::Tensor of_keys = qkv.narrow(1, queries, keys);
    norm_tensor(numerics, of_queries, layout.query_norm, of_queries);
    norm_tensor(numerics, of_keys, layout.key_norm, of_keys);
  }
  HeadSteps steps = rotation_steps(rotation);
  steps.clip = static_cast<float>(layout.clip);
  steps.norm_before = layout.norm == QueryKeyNorm::per_head;
  steps.norm_after = layout.norm == QueryKeyNorm::per_head_after_rope || layout.norm == QueryKeyNorm::unit_after_rope;
  steps.norm = kernels::arguments(layout.query_norm);
  turn_heads(qkv, layout, 0, layout.heads, steps);
  steps.norm = kernels::arguments(layout.key_norm);
  turn_heads(qkv, layout, layout.heads, layout.key_value_heads, steps);
  turn_heads(qkv, layout, layout.heads + layout.key_value_heads, layout.key_value_heads, {.clip = steps.clip, .norm = {}});
}

void rotate_heads_of(const Numerics&, at::Tensor& x, const kernels::Rotation& rotation) {
  TORCH_CHECK(x.stride(2) == 1, "a head's values must be neighbours");
  rotate_heads(element_of(x), x.mutable_data_ptr(),
               {.tokens = x.size(0),
                .heads = x.size(1),
                .width = x.size(2),
                .token_stride = x.stride(0),
                .head_stride = x.stride(1)},
               rotation_steps(rotation), stream_of(x));
  check_launch();
}

void add_rows_of(const Numerics&, at::Tensor& hidden, const at::Tensor& delta, double scale) {
  add_rows(check_rows(hidden, delta), hidden.mutable_data_ptr(), delta.const_data_ptr(), hidden.numel(), static_cast<float>(scale),
           stream_of(hidden));
  check_launch();
}

void gather_rows_of(const Numerics&, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out) {
  check_rows(x, out);
  gather_rows(x.const_data_ptr(), rows.const_data_ptr<std::int32_t>(), rows.size(0),
              x.size(1) * static_cast<std::int64_t>(x.element_size()), out.mutable_data_ptr(), stream_of(x));
  check_launch();
}

void join_halves(const at::Tensor& gate_up, double limit, double alpha, at::Tensor& out) {
  gated_unit(check_rows(gate_up, out), gate_up.const_data_ptr(), out.size(0), out.size(1), static_cast<float>(limit),
             static_cast<float>(alpha), out.mutable_data_ptr(), stream_of(out));
  check_launch();
}

void gated_silu_of(const Numerics&, const at::Tensor& gate_up, at::Tensor& out) { join_halves(gate_up, 0, 0, out); }

void clamped_swiglu_of(const Numerics&, const at::Tensor& gate_up, double limit, double alpha, at::Tensor& out) {
  join_halves(gate_up, limit, alpha, out);
}

void scatter_rows_of(const Numerics&, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates, at::Tensor& sum,
                     at::Tensor& norms, at::Tensor& max_abs) {
  scatter_rows(check_rows(f), f.const_data_ptr(), rows.const_data_ptr<std::int32_t>(), gates.const_data_ptr<float>(), f.size(0),
               f.size(1), sum.mutable_data_ptr<float>(), norms.mutable_data_ptr<float>(), max_abs.mutable_data_ptr<float>(),
               stream_of(f));
  check_launch();
}

void scatter_pairs_of(const Numerics&, const at::Tensor& f, const kernels::LayerPairs& pairs, std::int64_t first, at::Tensor& sum,
                      at::Tensor& norms, at::Tensor& max_abs) {
  scatter_pairs(check_rows(f), f.const_data_ptr(),
                {.first = first,
                 .count = f.size(0),
                 .tokens = pairs.places.size(0),
                 .slots = pairs.places.size(1),
                 .places = pairs.places.const_data_ptr<std::int32_t>(),
                 .gates = pairs.gates.const_data_ptr<float>()},
                f.size(1), sum.mutable_data_ptr<float>(), norms.mutable_data_ptr<float>(), max_abs.mutable_data_ptr<float>(),
                stream_of(f));
  check_launch();
}

void finish_rows_of(const Numerics&, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared, at::Tensor& turns,
                    double scale) {
  TORCH_CHECK(routed.is_contiguous() && (!shared.defined() || check_rows(hidden, shared) == element_of(hidden)), "finish: rows");
  finish_rows(check_rows(hidden), hidden.mutable_data_ptr(), routed.const_data_ptr<float>(),
              shared.defined() ? shared.const_data_ptr() : nullptr, hidden.size(0), hidden.size(1), turns.mutable_data_ptr<double>(),
              static_cast<float>(scale), stream_of(hidden));
  check_launch();
}

void gate_rows_of(const Numerics&, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out) {
  gate_rows(check_rows(gate, x, out), gate.const_data_ptr(), x.const_data_ptr(), x.size(0), x.size(1), out.mutable_data_ptr(),
            stream_of(x));
  check_launch();
}

}  // namespace

void dequantise_tensor(Code code, const at::Tensor& codes, const at::Tensor& scales, std::int64_t scale_rows,
                       std::int64_t scale_cols, at::Tensor& out) {
  TORCH_CHECK(codes.is_contiguous() && out.is_contiguous() && out.scalar_type() == at::kBFloat16, "dequantise: to bf16");
  dequantise(code, codes.const_data_ptr(), scales.const_data_ptr<float>(), out.size(0), out.size(1), scale_rows, scale_cols,
             out.mutable_data_ptr(), stream_of(codes));
  check_launch();
}

const Kernels kKernels{.norm_rows = norm_tensor,
                       .norm_product = norm_tensor,
                       .rotate_rows = rotate_rows_of,
                       .rotate_heads = rotate_heads_of,
                       .add_rows = add_rows_of,
                       .gather_rows = gather_rows_of,
                       .gated_silu = gated_silu_of,
                       .clamped_swiglu = clamped_swiglu_of,
                       .scatter_rows = scatter_rows_of,
                       .scatter_pairs = scatter_pairs_of,
                       .finish_rows = finish_rows_of,
                       .gate_rows = gate_rows_of};

}  // namespace moetrim::cuda
