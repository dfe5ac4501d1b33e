// The matrix product of a layer.
#pragma once

#include <ATen/core/Tensor.h>

namespace moetrim {

/// x [n, K] times weight [N, K] transposed, plus bias [N] where defined: [n, N] into the first rows of `out`.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, at::Tensor& out);

/// x [n, K] times weight [N, K] transposed, in memory of its own and in x's type, which may be wider than the weight's.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight);

/// `scratch` with at least that many rows and exactly that width; it only ever grows, so that tiles do not allocate.
at::Tensor& grow(at::Tensor& scratch, std::int64_t rows, std::int64_t width, at::ScalarType type, const at::Device& device);

}  // namespace moetrim
