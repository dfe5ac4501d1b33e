// Dense matrices on the CPU, without LibTorch: their product, which rows of one belong to which of another, and low rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moetrim {

/// Lengths of a product's three axes.
struct ProductSize {
  std::size_t rows = 0;     ///< of a and c
  std::size_t columns = 0;  ///< rows of b, columns of c
  std::size_t depth = 0;    ///< columns of a and b
};

/// c [rows, columns] += a [rows, depth] times b [columns, depth] transposed; all row-major without gaps, fp32.
/// Every element is one chain of multiply-adds over the depth, in blocks: the same bits on every machine with fused
/// multiply-add (AVX2 or AVX-512), others round once more.
/// @throws Error when a span has another length.
void add_product(std::span<const float> a, std::span<const float> b, std::span<float> c, const ProductSize& size);

enum class Optimum : std::uint8_t { least, greatest };

/// The assignment of rows to columns, one to one, whose sum of values is least or greatest: shortest augmenting paths after
/// a column reduction, in the manner of Jonker and Volgenant (Computing 38, 1987), in fp64 and O(n^3).
/// Where several are best, the choice depends on the values alone.
/// @param values  [n, n], row-major
/// @return for every row its column
/// @throws Error when values is not [n, n]; InvalidInput for a value that is not finite.
std::vector<int> optimal_assignment(std::span<const double> values, std::size_t n, Optimum optimum);

/// Replaces a matrix [rows, columns] by the one of that rank that is nearest to it in the sum of squares: its singular value
/// decomposition without the smaller values, by the eigenvectors of its smaller Gram matrix, in fp64. O(min(rows, columns)^3).
/// A rank that the matrix cannot exceed leaves it as it is.
/// @throws Error when values is not [rows, columns]; InvalidInput for a value that is not finite.
void nearest_of_rank(std::span<double> values, std::size_t rows, std::size_t columns, std::size_t rank);

/// A matrix [rows, columns] as left [rows, rank] times right [rank, columns], all row-major.
struct Factors {
  std::vector<double> left, right;
};
/// Those of the matrix that nearest_of_rank gives, below min(rows, columns). One factor is orthonormal along the rank.
/// @throws as nearest_of_rank; Error also for a rank that is not below both sides
Factors factors_of_rank(std::span<const double> values, std::size_t rows, std::size_t columns, std::size_t rank);

}  // namespace moetrim
