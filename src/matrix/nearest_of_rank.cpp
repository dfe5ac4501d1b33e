// The matrix of a given rank that is nearest to a matrix.

#include <algorithm>
#include <cmath>

#include <Eigen/Dense>
#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/matrix.h"

namespace moetrim {

namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void check_matrix(std::span<const double> values, std::size_t rows, std::size_t columns) {
  if (values.size() != rows * columns) throw Error(fmt::format("{} values are no matrix [{}, {}]", values.size(), rows, columns));
  if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) {
    throw InvalidInput("a matrix has values that are infinite or no numbers, so that it has no factors; check the file with moetrim "
                       "verify --deep");
  }
}

}  // namespace

Factors factors_of_rank(std::span<const double> values, std::size_t rows, std::size_t columns, std::size_t rank) {
  check_matrix(values, rows, columns);
  if (rank >= std::min(rows, columns)) throw Error(fmt::format("a matrix [{}, {}] has no factors of rank {}", rows, columns, rank));
  const auto m = static_cast<Eigen::Index>(rows), n = static_cast<Eigen::Index>(columns), r = static_cast<Eigen::Index>(rank);
  const Eigen::Map<const Matrix> a(values.data(), m, n);
  Matrix gram;
  if (m <= n) gram.noalias() = a * a.transpose();
  else gram.noalias() = a.transpose() * a;
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(gram);
  if (solver.info() != Eigen::Success) throw Error("the eigenvalues of a matrix were not found");
  const Matrix vectors = solver.eigenvectors().rightCols(r);  // eigenvalues ascend
  Factors out{std::vector<double>(rows * rank), std::vector<double>(rank * columns)};
  Eigen::Map<Matrix> left(out.left.data(), m, r), right(out.right.data(), r, n);
  if (m <= n) {
    left = vectors;
    right.noalias() = vectors.transpose() * a;
  } else {
    left.noalias() = a * vectors;
    right = vectors.transpose();
  }
  return out;
}

void nearest_of_rank(std::span<double> values, std::size_t rows, std::size_t columns, std::size_t rank) {
  check_matrix(values, rows, columns);
  if (rank >= std::min(rows, columns)) return;
  const Factors factors = factors_of_rank(values, rows, columns, rank);
  const auto m = static_cast<Eigen::Index>(rows), n = static_cast<Eigen::Index>(columns), r = static_cast<Eigen::Index>(rank);
  const Eigen::Map<const Matrix> left(factors.left.data(), m, r), right(factors.right.data(), r, n);
  Eigen::Map<Matrix>(values.data(), m, n).noalias() = left * right;
}

}  // namespace moetrim
