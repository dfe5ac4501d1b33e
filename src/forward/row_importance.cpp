// Gradients by an expert's matrices, times what factors of low rank would leave of them.

#include "forward/row_importance.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "moetrim/error.h"
#include "moetrim/matrix.h"

namespace moetrim {

namespace {

/// A matrix [out, in] without its nearest one of that rank.
at::Tensor rest_of(const at::Tensor& matrix, std::int64_t rank) {
  const at::Tensor whole = matrix.to(at::kCPU, at::kDouble).contiguous();
  at::Tensor nearest = whole.clone();
  const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
  nearest_of_rank({nearest.mutable_data_ptr<double>(), size(nearest.numel())}, size(nearest.size(0)), size(nearest.size(1)), size(rank));
  return nearest.neg_().add_(whole);
}

/// @param of_out  [n, out] gradient by the product. @param in  [n, in]
at::Tensor row_means(const at::Tensor& rest, const at::Tensor& of_out, const at::Tensor& in) {
  const auto type = rest.scalar_type();
  const at::Tensor gradient = at::mm(of_out.to(type).t(), in.to(type));
  return gradient.mul(rest).abs_().mean(1, /*keepdim=*/false, at::kDouble).cpu();
}

}  // namespace

void add_rests(ExpertWeights& weights, std::int64_t rank, at::ScalarType type, const std::string& where) {
  const auto width = weights.down.size(1);
  const auto options = weights.down.options().dtype(type);
  try {
    weights.gate_up_rest = at::empty({2 * width, weights.down.size(0)}, options);
    weights.gate_up_rest.slice(0, 0, width).copy_(rest_of(weights.gate_up.slice(0, 0, width), rank));
    weights.gate_up_rest.slice(0, width).copy_(rest_of(weights.gate_up.slice(0, width), rank));
    weights.down_rest = rest_of(weights.down, rank).to(options);
  } catch (const InvalidInput& problem) {
    throw InvalidInput(where + ": " + problem.what());
  }
}

MatrixRows row_importance(const ExpertWeights& weights, const MatrixPoint& point) {
  const auto width = weights.down.size(1);
  const auto of = [&](std::int64_t begin) {
    return row_means(weights.gate_up_rest.narrow(0, begin, width), point.of_gate_up.narrow(1, begin, width), point.input);
  };
  return {.gate = of(0), .up = of(width), .down = row_means(weights.down_rest, point.of_output, point.activated)};
}

std::uint64_t row_importance_bytes(const Model& model, Precision precision) {
  const std::uint64_t wide = precision == Precision::fp64 ? 8 : 4;
  const auto matrix = static_cast<std::uint64_t>(model.expert_width * model.hidden);
  const auto side = static_cast<std::uint64_t>(std::min(model.expert_width, model.hidden));
  const std::uint64_t factors = (3 * matrix + 4 * side * side) * sizeof(double);  // the Gram matrix with its eigenvectors
  const std::uint64_t gradient = matrix * (2 * wide + sizeof(double));            // times the rest, widened for the means
  return 3 * matrix * wide + std::max(factors, gradient);
}

double factor_operations(const Model& model) {
  const auto side = static_cast<double>(std::min(model.expert_width, model.hidden));
  const auto other = static_cast<double>(std::max(model.expert_width, model.hidden));
  // The Gram matrix, and the eigenvectors by what they take beside a product of the same cube.
  return 3 * (2 * side * side * other + 60 * side * side * side);
}

}  // namespace moetrim
