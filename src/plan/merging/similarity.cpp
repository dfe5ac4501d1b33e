// How alike two experts are, from their vectors or from products of them.
#include "plan/merging/similarity.h"

#include <algorithm>
#include <cmath>

namespace moetrim {
namespace {

/// value(i, j) for i < j at both places.
template <class Value>
std::vector<double> symmetric(std::size_t n, double diagonal, const Value& value) {
  std::vector<double> matrix(n * n, diagonal);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) matrix[i * n + j] = matrix[j * n + i] = value(i, j);
  }
  return matrix;
}

double dot(const double* a, const double* b, std::size_t width) {
  double sum = 0;
  for (std::size_t k = 0; k < width; ++k) sum += a[k] * b[k];
  return sum;
}

}  // namespace

std::vector<double> cosines_of_gram(std::span<const double> gram, std::size_t n) {
  return symmetric(n, 1, [&](std::size_t i, std::size_t j) {
    const double lengths = std::sqrt(gram[i * n + i]) * std::sqrt(gram[j * n + j]);
    return lengths > 0 ? std::clamp(gram[i * n + j] / lengths, -1.0, 1.0) : 0.0;
  });
}

std::vector<double> cosines_of_rows(std::span<const double> rows, std::size_t n, std::size_t width) {
  std::vector<double> gram(n * n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      gram[i * n + j] = gram[j * n + i] = dot(rows.data() + i * width, rows.data() + j * width, width);
    }
  }
  return cosines_of_gram(gram, n);
}

std::vector<double> as_similarity(std::vector<double> cosines) {
  for (double& value : cosines) value = (1 + value) / 2;
  return cosines;
}

std::vector<double> distances_of_rows(std::span<const double> rows, std::size_t n, std::size_t width) {
  return symmetric(n, 0, [&](std::size_t i, std::size_t j) {
    double sum = 0;
    for (std::size_t k = 0; k < width; ++k) {
      const double difference = rows[i * width + k] - rows[j * width + k];
      sum += difference * difference;
    }
    return std::sqrt(sum);
  });
}

std::vector<double> distances_of_gram(std::span<const double> gram, std::size_t n) {
  return symmetric(n, 0, [&](std::size_t i, std::size_t j) {
    return std::sqrt(std::max(0.0, gram[i * n + i] + gram[j * n + j] - 2 * gram[i * n + j]));
  });
}

}  // namespace moetrim
