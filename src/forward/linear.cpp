// The matrix product of a layer.

#include "forward/linear.h"

#include <ATen/ATen.h>

namespace moetrim {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, at::Tensor& out) {
  grow(out, x.size(0), weight.size(0), x.scalar_type(), x.device());
  at::Tensor rows = out.narrow(0, 0, x.size(0));
  if (bias.defined()) {
    at::addmm_out(rows, bias, x, weight.t());
  } else {
    at::mm_out(rows, x, weight.t());
  }
  return rows;
}

at::Tensor& grow(at::Tensor& scratch, std::int64_t rows, std::int64_t width, at::ScalarType type, const at::Device& device) {
  const bool fits = scratch.defined() && scratch.size(0) >= rows && scratch.size(1) == width;
  if (!fits) scratch = at::empty({rows, width}, at::TensorOptions().dtype(type).device(device));
  return scratch;
}

}  // namespace moetrim
