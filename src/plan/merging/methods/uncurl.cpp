// UNCURL: spectral clustering on router logits.
// Source: arXiv:2409.01483; the clustering is that of Ng, Jordan and Weiss (2001) with the affinity (1 + cosine) / 2: the
// eigenvectors of the normalised Laplacian's smallest eigenvalues, every expert's row of them made unit length, k-means.
#include <cmath>

#include <Eigen/Eigenvalues>

#include "moetrim/error.h"
#include "plan/merging/groups.h"
#include "plan/merging/k_means.h"
#include "plan/merging/methods.h"
#include "plan/merging/similarity.h"

namespace moetrim::merging {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// I - D^-1/2 A D^-1/2, D the row sums of the affinities A.
Matrix normalised_laplacian(const Matrix& affinity) {
  const Eigen::VectorXd scale = affinity.rowwise().sum().cwiseSqrt().cwiseInverse();
  return Matrix::Identity(affinity.rows(), affinity.cols()) - scale.asDiagonal() * affinity * scale.asDiagonal();
}

/// Every expert's place: [n, count], rows of unit length.
std::vector<double> spectral_rows(std::vector<double> affinity, Eigen::Index n, Eigen::Index count) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(normalised_laplacian(Eigen::Map<Matrix>(affinity.data(), n, n)));
  if (solver.info() != Eigen::Success) {
    throw InvalidInput("uncurl: the eigenvectors of the router logits' affinity do not converge; group by another method");
  }
  std::vector<double> rows(static_cast<std::size_t>(n * count));
  Eigen::Map<Matrix> out(rows.data(), n, count);
  out = solver.eigenvectors().leftCols(count);
  out.rowwise().normalize();
  return rows;
}

std::vector<MergeGroup> by_spectrum(const MergeFacts& facts, int count, const MergeOptions&) {
  const auto n = static_cast<std::size_t>(facts.size());
  const auto rows = spectral_rows(as_similarity(cosines_of_gram(facts.gram, n)), facts.size(), count);
  const auto first = static_cast<std::size_t>(descending(facts.mass).front());
  return groups_of(k_means(rows, n, static_cast<std::size_t>(count), first), facts.mass);
}

}  // namespace

const MergingMethod uncurl{
    .name = "uncurl",
    .source = "UNCURL, arXiv:2409.01483",
    .weights = "the router's probability",
    .align = Alignment::weights,
    .needs_logits = true,
    .needs_outputs = false,
    .chooses_features = false,
    .has_linkage = false,
    .has_group_size = false,
    .adaptive = false,
    .group = by_spectrum,
};

}  // namespace moetrim::merging
