// The steps of a layer: the matrix product, and what lies between products, fused so that a row is touched while it is in cache.
//
// "tile" tensors have Numerics::tile() elements, "stored" tensors Numerics::stored(). A tile that comes from a matrix product
// is rounded by the kernel that reads it, as a bf16 run would have when it was written. Rows are contiguous. A kernel has up
// to three forms with the same results up to the order of sums: loops for the CPU, LibTorch operators for fp64 and for what has
// no other form, and kernels for CUDA (cuda/).
#pragma once

#include <limits>
#include <vector>

#include <ATen/core/Tensor.h>

#include "forward/norm_arguments.h"
#include "forward/numerics.h"

namespace moetrim {

/// A normalisation's weights, f32. `rms_one_plus` has its 1 added already and counts as `rms_fp32`.
struct Norm {
  NormKind kind = NormKind::rms;
  double epsilon = 1e-6;
  at::Tensor weight, bias;  ///< bias only for NormKind::layer
};

namespace kernels {

/// The same with plain pointers, which must not outlive it.
inline NormArguments arguments(const Norm& norm) {
  return {.weight = norm.weight.defined() ? norm.weight.const_data_ptr<float>() : nullptr,
          .bias = norm.bias.defined() ? norm.bias.const_data_ptr<float>() : nullptr,
          .epsilon = static_cast<float>(norm.epsilon),
          .weight_in_fp32 = norm.kind != NormKind::rms};
}

/// out = x weight^T + added.  x [n, K], weight [N, K] or a transposed view, out [n, N]; added is a bias [N], out itself, or nothing.
/// On the CPU fp32 values may meet weights in bf16, and a row of the result has the same bits whatever other rows x has.
void multiply(const at::Tensor& x, const at::Tensor& weight, at::Tensor& out, const at::Tensor& added = {});

/// out = weight * x / rms(x), rounded as the kind says: before and after the weight, or only after it.
/// x [n, H] stored, out [n, H] tile.
void norm_rows(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out);

/// The same for x [n, W] tile from a product, rows possibly apart; out [n, W] tile.
void norm_product(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out);

/// What turns a pair of values, and how the result is rounded.
struct Rotation {
  at::Tensor cosine, sine;  ///< f32 [L, R / 2]
  RopePairs pairs = RopePairs::halves;
  bool in_fp32 = false;     ///< rounded once at the end, not after every operation
};

/// How a row of queries, keys and values is cut into heads, and what is done to it.
struct HeadLayout {
  std::int64_t heads = 0, key_value_heads = 0, head_dim = 0;
  QueryKeyNorm norm = QueryKeyNorm::none;
  double clip = 0;             ///< 0: no clamp
  Norm query_norm, key_norm;   ///< weights [D] or [Q] and [KV]
};

/// Normalises, clamps and rotates the queries and keys of one sequence in place; clamps the values.
/// qkv [L, Q + 2 KV + …] tile from a product; without a cosine nothing is rotated.
void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const Rotation& rotation);

/// Rotates x [L, heads, R] tile in place; heads and rows may lie apart.
void rotate_heads(const Numerics& numerics, at::Tensor& x, const Rotation& rotation);

/// hidden += scale * delta.  hidden [n, H] stored, delta [n, H] tile from a product.
void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta, double scale = 1.0);

/// out[i] = x[rows[i]].  x [T, H] stored, rows [n] i32, out [n, H] tile.
void gather_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out);

/// out = silu(gate) * up.  gate_up [n, 2 W] tile from a product, gate first; out [n, W] tile.
void gated_silu(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out);

/// out = (up + 1) gate sigmoid(alpha gate) with gate <= limit and |up| <= limit. Tensors as for gated_silu.
void clamped_swiglu(const Numerics& numerics, const at::Tensor& gate_up, double limit, double alpha, at::Tensor& out);

/// Takes an expert's output while it is in cache: sum[rows[i]] += gates[i] * f[i], and |f[i]|2, max |f[i]|.
/// f [n, H] tile from a product, rows [n] i32 without repeats, gates [n] f32, sum [T, H] f32, norms and max_abs [n] f32.
void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs);

/// The pairs (token, slot) of a layer in the order of experts, on the device of the tiles.
struct LayerPairs {
  at::Tensor tokens;  ///< [P] i32
  at::Tensor places;  ///< [T, K] i32 where a token's pairs are, ascending: the order in which its outputs are added
  at::Tensor gates;   ///< [P] wide
};

/// The same for rows of several experts: f [n, H] tile holds the outputs of the pairs [first, first + n), in which a token may
/// come more than once. sum [T, H] f32, norms and max_abs [P] f32, of which those n are written.
void scatter_pairs(const Numerics& numerics, const at::Tensor& f, const LayerPairs& pairs, std::int64_t first, at::Tensor& sum,
                   at::Tensor& norms, at::Tensor& max_abs);

/// Ends an MoE block: turn = max(0, 1 - cos(hidden, hidden + scale routed)), then hidden += scale (routed + shared).
/// hidden [n, H] stored, routed [n, H] f32, shared [n, H] tile or undefined, turns [n] f64.
void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns, double scale = 1.0);

/// out = sigmoid(gate) * x, row by row.  gate [n, 1] tile from a product, x [n, H] tile from a product, out [n, H] tile.
void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out);

/// x = softmax(scale * x) over columns [first[r], last[r]) of row r, 0 elsewhere. CPU only.
/// x [n, S] f32, first and last hold n columns each; sinks are n logits that take part in the sum alone, or none.
void softmax_rows(at::Tensor& x, const std::vector<std::int32_t>& first, const std::vector<std::int32_t>& last, double scale,
                  const std::vector<float>& sinks = {});

/// The gated delta rule over one sequence, all heads (arXiv 2412.06464, equation 10), in fp32:
/// S <- exp(decay) S; S <- S + k (beta (v - k S)); out = q S.
/// queries and keys [L, N, D_k], values [L, P, D_v], decay and beta [L, P], all f32; value head p uses key head p N / P;
/// state [P, D_k, D_v] f32 is read and left behind; out [L, P, D_v] f32.
void delta_rule(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& decay,
                const at::Tensor& beta, at::Tensor& state, at::Tensor& out);

/// What is between an MLP's two matrices: (up + offset) gate sigmoid(alpha gate), gate <= limit and |up| <= limit.
struct GatedUnit {
  double limit = std::numeric_limits<double>::infinity();
  double alpha = 1.0;
  double offset = 0.0;
};

/// Takes the sums of an expert's atoms and goes back through its gated unit. With x = activated, d = of_activated and
/// c = gates d: sums += (x^2, c^2, x^2 c^2) over the rows, products = x d over the atoms.
/// activated and of_activated [n, F] tile, gates [n] wide, gate_up [n, 2 F] tile as a product left it, becomes its gradient;
/// products [n] wide, sums [3, F] f64 on the CPU.
void reverse_atoms(const Numerics& numerics, const GatedUnit& unit, const at::Tensor& activated, const at::Tensor& of_activated,
                   const at::Tensor& gates, at::Tensor& gate_up, at::Tensor& products, at::Tensor& sums);

/// Rounds a product to what a tile may hold; needed only where no kernel above reads it next.
void round_product(const Numerics& numerics, at::Tensor& x);

}  // namespace kernels

}  // namespace moetrim
