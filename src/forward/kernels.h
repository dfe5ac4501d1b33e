// The steps of a layer that are not matrix products, fused so that a row is touched while it is in cache.
//
// "tile" tensors have Numerics::tile() elements, "stored" tensors Numerics::stored(). A tile that comes from a matrix product
// is rounded by the kernel that reads it, as a bf16 run would have when it was written. Rows are contiguous. Every kernel
// has two forms with the same results up to the order of sums: loops for the CPU, and LibTorch operators for other devices.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "forward/numerics.h"

namespace moetrim::kernels {

/// out = weight * x / rms(x), rounded before and after the weight as transformers does.
/// x [n, H] stored, weight [H] f32, out [n, H] tile.
void norm_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& weight, double epsilon, at::Tensor& out);

/// How a row [Q + 2 KV] of queries, keys and values is cut into heads, and what is done to it.
struct HeadLayout {
  std::int64_t heads = 0, key_value_heads = 0, head_dim = 0;
  QueryKeyNorm norm = QueryKeyNorm::none;
  double epsilon = 0;
  double clip = 0;             ///< 0: no clamp
  at::Tensor query_norm, key_norm;  ///< f32 [D] or [Q] and [KV]; undefined without normalisation
};

/// Normalises, clamps and rotates the queries and keys of one sequence in place; clamps the values.
/// qkv [L, Q + 2 KV] tile, cosine and sine [L, R / 2] f32 with R rotated values per head.
void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const at::Tensor& cosine,
                 const at::Tensor& sine);

/// hidden += delta.  hidden [n, H] stored, delta [n, H] tile from a product.
void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta);

/// out[i] = x[rows[i]].  x [T, H] stored, rows [n] i32, out [n, H] tile.
void gather_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out);

/// out = silu(gate) * up.  gate_up [n, 2 W] tile from a product, gate first; out [n, W] tile.
void gated_silu(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out);

/// Takes an expert's output while it is in cache: sum[rows[i]] += gates[i] * f[i], and |f[i]|2, max |f[i]|.
/// f [n, H] tile from a product, rows [n] i32 without repeats, gates [n] f32, sum [T, H] f32, norms and max_abs [n] f32.
void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs);

/// Ends an MoE block: turn = max(0, 1 - cos(hidden, hidden + routed)), then hidden += routed (+ shared).
/// hidden [n, H] stored, routed [n, H] f32, shared [n, H] tile or undefined, turns [n] f64.
void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns);

/// out = sigmoid(gate) * x, row by row.  gate [n, 1] tile from a product, x [n, H] tile from a product, out [n, H] tile.
void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out);

/// x = softmax(scale * x) over columns [first[r], last[r]) of row r, 0 elsewhere. CPU only.
/// x [n, S] f32, first and last hold n columns each.
void softmax_rows(at::Tensor& x, const std::vector<std::int32_t>& first, const std::vector<std::int32_t>& last, double scale);

/// Rounds a product to what a tile may hold; needed only where no kernel above reads it next.
void round_product(const Numerics& numerics, at::Tensor& x);

}  // namespace moetrim::kernels
