// Factorisation analysis of one layer: eigenvalues of Gram matrices, of all experts together and of each.

#include <algorithm>
#include <array>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "factorise/expert_matrices.h"
#include "moetrim/error.h"
#include "moetrim/factorise.h"

namespace moetrim {

namespace {

/// Ranks as parts of a side.
constexpr std::array<std::int64_t, 4> kParts = {16, 8, 4, 2};

std::int64_t rank_of(std::int64_t side, std::int64_t part) { return std::max<std::int64_t>(1, side / part); }

/// Share of the sum of eigenvalues (ascending) that the `rank` largest leave.
double residual(const at::Tensor& eigenvalues, std::int64_t rank) {
  const at::Tensor values = eigenvalues.clamp_min(0);  // rounding puts zeros on either side
  const double all = values.sum().item<double>();
  return all > 0 ? values.narrow(0, 0, values.size(0) - rank).sum().item<double>() / all : 0.0;
}

at::Tensor gram_of_rows(const at::Tensor& matrix) { return at::matmul(matrix, matrix.t()); }
at::Tensor gram_of_columns(const at::Tensor& matrix) { return at::matmul(matrix.t(), matrix); }

void add_alone(const at::Tensor& gram, double experts, std::vector<RankResidual>& alone) {
  const at::Tensor eigenvalues = at::linalg_eigvalsh(gram);
  for (RankResidual& entry : alone) {
    const double left = residual(eigenvalues, entry.rank);
    entry.residual += left / experts;
    entry.largest = std::max(entry.largest, left);
  }
}

void set_ranks(ProjectionResiduals& out, std::int64_t width, std::int64_t hidden, std::int64_t experts) {
  const auto values = static_cast<double>(width * hidden);
  for (const std::int64_t part : kParts) {
    const std::int64_t rank = rank_of(std::min(width, hidden), part);
    out.alone.push_back({.rank = rank, .size = static_cast<double>(rank * (width + hidden)) / values});
    const std::int64_t shared = rank_of(hidden, part);
    const auto factors = static_cast<double>(shared * (hidden + experts * width));
    out.joint.push_back({.rank = shared, .size = factors / (static_cast<double>(experts) * values)});
  }
}

ProjectionResiduals factorise(const Model& model, int layer, Projection projection) {
  const std::int64_t hidden = model.hidden;
  const std::int64_t experts = model.experts_in(layer);
  const bool down = projection == Projection::down;
  ProjectionResiduals out;
  at::Tensor joint = at::zeros({hidden, hidden}, at::kDouble);
  for (int expert = 0; expert < experts; ++expert) {
    const at::Tensor matrix = expert_matrix(model, layer, expert, projection);
    const std::int64_t width = matrix.size(down ? 1 : 0);
    if (expert == 0) set_ranks(out, width, hidden, experts);
    const at::Tensor of_hidden = down ? gram_of_rows(matrix) : gram_of_columns(matrix);
    joint.add_(of_hidden);
    // Both sides have the same eigenvalues but for zeros; the smaller is cheaper.
    const bool narrow = width < hidden;
    const at::Tensor gram = !narrow ? of_hidden : down ? gram_of_columns(matrix) : gram_of_rows(matrix);
    add_alone(gram, static_cast<double>(experts), out.alone);
  }
  const at::Tensor eigenvalues = at::linalg_eigvalsh(joint);
  for (RankResidual& entry : out.joint) entry.residual = entry.largest = residual(eigenvalues, entry.rank);
  return out;
}

}  // namespace

LayerResiduals factorise_layer(const Model& model, int layer) {
  const auto layers = model.moe_layers(/*with_mtp=*/true);
  if (std::find(layers.begin(), layers.end(), layer) == layers.end()) {
    throw UsageError(fmt::format("layer {} has no experts", layer));
  }
  return {.layer = layer,
          .gate = factorise(model, layer, Projection::gate),
          .up = factorise(model, layer, Projection::up),
          .down = factorise(model, layer, Projection::down)};
}

}  // namespace moetrim
