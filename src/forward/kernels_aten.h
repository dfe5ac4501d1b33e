// LibTorch forms of the kernels, for devices without loops of ours; also what the loops are tested against.
#pragma once

#include <utility>

#include "forward/kernels.h"

namespace moetrim::kernels::aten {

// Forms that return their result, wide, so that autograd can follow them.
at::Tensor normalised(const Numerics& numerics, const at::Tensor& x, const Norm& norm);
/// heads [L, heads, R]
at::Tensor rotated(const Numerics& numerics, const at::Tensor& heads, const Rotation& rotation);
/// qkv [L, Q + 2 KV + …], see rotate_rows
at::Tensor rotated_rows(const Numerics& numerics, const at::Tensor& qkv, const HeadLayout& layout, const Rotation& rotation);
/// gate_up [n, 2 W], see gated_silu and clamped_swiglu
at::Tensor silu_times(const Numerics& numerics, const at::Tensor& gate_up);
at::Tensor swiglu(const Numerics& numerics, const at::Tensor& gate_up, double limit, double alpha);
/// The outputs and the state left behind, see delta_rule; in chunks, so that the work is matrix products.
std::pair<at::Tensor, at::Tensor> delta_rule_chunks(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                                                    const at::Tensor& decay, const at::Tensor& beta, at::Tensor state);

void norm_rows(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out);
void norm_product(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out);
void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const Rotation& rotation);
void rotate_heads(const Numerics& numerics, at::Tensor& x, const Rotation& rotation);
void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta, double scale = 1.0);
void gather_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out);
void gated_silu(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out);
void clamped_swiglu(const Numerics& numerics, const at::Tensor& gate_up, double limit, double alpha, at::Tensor& out);
void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs);
void scatter_pairs(const Numerics& numerics, const at::Tensor& f, const LayerPairs& pairs, std::int64_t first, at::Tensor& sum,
                   at::Tensor& norms, at::Tensor& max_abs);
void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns, double scale = 1.0);
void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out);
void delta_rule(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& decay,
                const at::Tensor& beta, at::Tensor& state, at::Tensor& out);
void reverse_atoms(const Numerics& numerics, const GatedUnit& unit, const at::Tensor& activated, const at::Tensor& of_activated,
                   const at::Tensor& gates, at::Tensor& gate_up, at::Tensor& products, at::Tensor& sums);
void round_product(const Numerics& numerics, at::Tensor& x);

}  // namespace moetrim::kernels::aten
