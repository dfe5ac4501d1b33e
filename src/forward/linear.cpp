// The matrix product of a layer.

#include "forward/linear.h"

#include <ATen/ATen.h>

#include "forward/kernels.h"

namespace moetrim {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, at::Tensor& out) {
  grow(out, x.size(0), weight.size(0), x.scalar_type(), x.device());
  at::Tensor rows = out.narrow(0, 0, x.size(0));
  kernels::multiply(x, weight, rows, bias);
  return rows;
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight) {
  const bool as_it_is = x.is_cpu() && x.scalar_type() == at::kFloat;
  const at::Tensor rows = as_it_is ? x : x.to(weight.scalar_type());
  at::Tensor out = at::empty({x.size(0), weight.size(0)}, rows.options());
  kernels::multiply(rows, weight, out);
  return out.to(x.scalar_type());
}

at::Tensor& grow(at::Tensor& scratch, std::int64_t rows, std::int64_t width, at::ScalarType type, const at::Device& device) {
  const bool fits = scratch.defined() && scratch.size(0) >= rows && scratch.size(1) == width;
  if (!fits) scratch = at::empty({rows, width}, at::TensorOptions().dtype(type).device(device));
  return scratch;
}

}  // namespace moetrim
