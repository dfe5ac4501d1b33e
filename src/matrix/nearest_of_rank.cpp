// The matrix of a given rank that is nearest to a matrix.

#include <algorithm>
#include <cmath>

#include <Eigen/Dense>
#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/matrix.h"

namespace moetrim {

void nearest_of_rank(std::span<double> values, std::size_t rows, std::size_t columns, std::size_t rank) {
  if (values.size() != rows * columns) throw Error(fmt::format("{} values are no matrix [{}, {}]", values.size(), rows, columns));
  if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) {
    throw InvalidInput("a matrix has values that are infinite or no numbers, so that it has no factors; check the file with moetrim "
                       "verify --deep");
  }
  const auto m = static_cast<Eigen::Index>(rows), n = static_cast<Eigen::Index>(columns), r = static_cast<Eigen::Index>(rank);
  if (r >= std::min(m, n)) return;
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::Map<Matrix> a(values.data(), m, n);
  Matrix gram;
  if (m <= n) gram.noalias() = a * a.transpose();
  else gram.noalias() = a.transpose() * a;
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(gram);
  if (solver.info() != Eigen::Success) throw Error("the eigenvalues of a matrix were not found");
  const Matrix vectors = solver.eigenvectors().rightCols(r);  // eigenvalues ascend
  if (m <= n) {
    const Matrix factor = vectors.transpose() * a;
    a.noalias() = vectors * factor;
  } else {
    const Matrix factor = a * vectors;
    a.noalias() = factor * vectors.transpose();
  }
}

}  // namespace moetrim
