// LibTorch forms of the kernels, for devices without loops of ours; also what the loops are tested against.
#pragma once

#include "forward/kernels.h"

namespace moetrim::kernels::aten {

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
void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns, double scale = 1.0);
void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out);
void delta_rule(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& decay,
                const at::Tensor& beta, at::Tensor& state, at::Tensor& out);
void round_product(const Numerics& numerics, at::Tensor& x);

}  // namespace moetrim::kernels::aten
