// How alike two experts are, private to the stage. Matrices are [n, n], row-major, symmetric.
#pragma once

#include <span>
#include <vector>

namespace moetrim {

/// Cosines of the columns whose products are given: 1 on the diagonal, 0 between others where a column is all zeros.
std::vector<double> cosines_of_gram(std::span<const double> gram, std::size_t n);
/// Cosines of the rows of [n, width]; likewise.
std::vector<double> cosines_of_rows(std::span<const double> rows, std::size_t n, std::size_t width);
/// (1 + cosine) / 2.
std::vector<double> as_similarity(std::vector<double> cosines);

/// Euclidean distances of the rows of [n, width], from their differences: rows that share a large part lose nothing.
std::vector<double> distances_of_rows(std::span<const double> rows, std::size_t n, std::size_t width);
/// Euclidean distances of the columns whose products are given.
std::vector<double> distances_of_gram(std::span<const double> gram, std::size_t n);

}  // namespace moetrim
