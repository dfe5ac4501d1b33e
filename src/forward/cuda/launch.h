// Launches of the CUDA kernels: plain pointers on the device and a stream, so that the kernels compile without LibTorch.
// What each computes is said in forward/kernels.h. Pointers are aligned to their elements, rows are contiguous where no stride
// is given, strides count elements. Sizes of 0 launch nothing.
#pragma once

#include <cstdint>

#include "forward/cuda/types.h"
#include "forward/norm_arguments.h"

namespace moetrim::cuda {

using kernels::NormArguments;

/// x and out may be the same.
void norm_rows(Element element, const void* x, std::int64_t x_stride, NormArguments norm, std::int64_t rows, std::int64_t width,
               void* out, std::int64_t out_stride, Stream stream);

/// Heads of a product, worked on in place: element (token, head, i) is at token * token_stride + head * head_stride + i.
struct Heads {
  std::int64_t tokens = 0, heads = 0, width = 0;
  std::int64_t token_stride = 0, head_stride = 0;
};

/// What is done to a head, in this order.
struct HeadSteps {
  float clip = 0;                   ///< 0: no clamp
  bool norm_before = false, norm_after = false;
  NormArguments norm;                     ///< over a head; no bias
  const float* cosine = nullptr;    ///< [tokens, half]; null: no rotation
  const float* sine = nullptr;
  std::int64_t half = 0;
  bool neighbours = false;
  bool in_fp32 = false;             ///< rounded once at the end, not after every operation
};

void rotate_heads(Element element, void* x, const Heads& heads, const HeadSteps& steps, Stream stream);

void add_rows(Element element, void* hidden, const void* delta, std::int64_t count, float scale, Stream stream);

/// Rows of `row_bytes` bytes each.
void gather_rows(const void* x, const std::int32_t* rows, std::int64_t count, std::int64_t row_bytes, void* out,
                 Stream stream);

/// How an MLP joins its two halves. With alpha == 0 it is silu(gate) * up, else clamped_swiglu.
void gated_unit(Element element, const void* gate_up, std::int64_t rows, std::int64_t width, float limit, float alpha, void* out,
                Stream stream);
void gate_rows(Element element, const void* gate, const void* x, std::int64_t rows, std::int64_t width, void* out,
               Stream stream);

/// sum[rows[i]] += gates[i] * f[i], and the norm and largest magnitude of f[i]; rows do not repeat. f [count, width].
void scatter_rows(Element element, const void* f, const std::int32_t* rows, const float* gates, std::int64_t count,
                  std::int64_t width, float* sum, float* norms, float* max_abs, Stream stream);

/// Rows [first, first + count) of a layer's pairs, which are in the order of experts.
struct PairRows {
  std::int64_t first = 0, count = 0;
  std::int64_t tokens = 0, slots = 0;
  const std::int32_t* places = nullptr;  ///< [tokens, slots] where a token's pairs are, ascending
  const float* gates = nullptr;          ///< [tokens * slots] in the order of pairs
};

/// f [pairs.count, width]; norms and max_abs [tokens * slots] in the order of pairs, of which these rows' are written.
void scatter_pairs(Element element, const void* f, const PairRows& pairs, std::int64_t width, float* sum, float* norms,
                   float* max_abs, Stream stream);

void finish_rows(Element element, void* hidden, const float* routed, const void* shared, std::int64_t rows, std::int64_t width,
                 double* turns, float scale, Stream stream);

/// out = bf16(code * scale[row / scale_rows, column / scale_cols]).
/// codes [rows, cols]; scales [ceil(rows / scale_rows), ceil(cols / scale_cols)] f32; for e2m1 scale_cols and cols are even.
void dequantise(Code code, const void* codes, const float* scales, std::int64_t rows, std::int64_t cols, std::int64_t scale_rows,
                std::int64_t scale_cols, void* out, Stream stream);

}  // namespace moetrim::cuda
