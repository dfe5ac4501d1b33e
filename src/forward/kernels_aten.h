// LibTorch forms of the kernels, for devices without loops of ours; also what the loops are tested against.
#pragma once

#include "forward/kernels.h"

namespace moetrim::kernels::aten {

void norm_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& weight, double epsilon, at::Tensor& out);
void rotate_rows(const Numerics& numerics, at::Tensor& qkv, const HeadLayout& layout, const at::Tensor& cosine,
                 const at::Tensor& sine);
void add_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta);
void gather_rows(const Numerics& numerics, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out);
void gated_silu(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out);
void scatter_rows(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                  at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs);
void finish_rows(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                 at::Tensor& turns);
void gate_rows(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out);
void round_product(const Numerics& numerics, at::Tensor& x);

}  // namespace moetrim::kernels::aten
