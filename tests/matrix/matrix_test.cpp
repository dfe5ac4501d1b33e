// The matrix product against sums by hand, and the optimal assignment against all permutations.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "testing.h"

#include "moetrim/error.h"
#include "moetrim/matrix.h"

using namespace moetrim;

namespace {

double sum_of(const std::vector<double>& values, std::size_t n, const std::vector<int>& columns) {
  double sum = 0;
  for (std::size_t row = 0; row < n; ++row) sum += values[row * n + static_cast<std::size_t>(columns[row])];
  return sum;
}

/// By trying them all.
double best_sum(const std::vector<double>& values, std::size_t n, Optimum optimum) {
  std::vector<int> columns(n);
  std::iota(columns.begin(), columns.end(), 0);
  double best = sum_of(values, n, columns);
  while (std::next_permutation(columns.begin(), columns.end())) {
    const double sum = sum_of(values, n, columns);
    best = optimum == Optimum::least ? std::min(best, sum) : std::max(best, sum);
  }
  return best;
}

}  // namespace

TEST_CASE("a product adds to what is there, also where no axis fills a tile") {
  constexpr std::size_t kRows = 7, kColumns = 37, kDepth = 517;  // beyond a block of the depth
  std::mt19937 random(1);
  const auto fill = [&](std::vector<float>& values) {
    for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 9) - 4);  // sums are exact
  };
  std::vector<float> a(kRows * kDepth), b(kColumns * kDepth), c(kRows * kColumns);
  for (auto* values : {&a, &b, &c}) fill(*values);
  std::vector<float> expected = c;
  for (std::size_t i = 0; i < kRows; ++i) {
    for (std::size_t j = 0; j < kColumns; ++j) {
      for (std::size_t k = 0; k < kDepth; ++k) expected[i * kColumns + j] += a[i * kDepth + k] * b[j * kDepth + k];
    }
  }
  add_product(a, b, c, {kRows, kColumns, kDepth});
  CHECK(c == expected);
  CHECK_THROWS_AS(add_product(a, b, c, {kRows, kColumns, kDepth - 1}), Error);
}

TEST_CASE("the assignment of the worked example of M-SMoE") {
  const std::vector<double> values = {3.1, 2, 0, 2, -0.1, 2.1, 7.1, 2.9, 2.1};
  const auto columns = optimal_assignment(values, 3, Optimum::greatest);
  CHECK(columns == std::vector<int>{1, 2, 0});
  CHECK(sum_of(values, 3, columns) == Approx(11.2));
}

TEST_CASE("an assignment is a permutation with the best sum, also among ties") {
  std::mt19937 random(2);
  for (int round = 0; round < 400; ++round) {
    const std::size_t n = 1 + random() % 6;
    const unsigned spread = round % 2 == 0 ? 3 : 1000;  // few different values: many ties
    std::vector<double> values(n * n);
    for (double& value : values) value = static_cast<double>(random() % spread) - 1;
    const Optimum optimum = round % 3 == 0 ? Optimum::least : Optimum::greatest;
    auto columns = optimal_assignment(values, n, optimum);
    CHECK(sum_of(values, n, columns) == best_sum(values, n, optimum));
    CHECK(columns == optimal_assignment(values, n, optimum));
    std::sort(columns.begin(), columns.end());
    for (std::size_t i = 0; i < n; ++i) CHECK(columns[i] == static_cast<int>(i));
  }
  CHECK(optimal_assignment({}, 0, Optimum::least).empty());
}

TEST_CASE("values that are no square or not finite are refused") {
  const std::vector<double> five(5);
  CHECK_THROWS_AS(optimal_assignment(five, 2, Optimum::least), Error);
  const std::vector<double> broken = {1, 2, std::numeric_limits<double>::quiet_NaN(), 4};
  CHECK_THROWS_AS(optimal_assignment(broken, 2, Optimum::least), InvalidInput);
}

TEST_CASE("the nearest matrix of rank 1 of the worked example of MC-SMoE") {
  const std::vector<double> whole = {3, 0, 0, 2, 1, 1};
  std::vector<double> tall = whole;
  nearest_of_rank(tall, 3, 2, 1);
  const std::vector<double> expected = {2.89272, 0.55709, 0.37139, 0.07152, 1.14993, 0.22146};
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(std::abs(tall[i] - expected[i]) < 1e-5);
  std::vector<double> wide = {3, 0, 1, 0, 2, 1};
  nearest_of_rank(wide, 2, 3, 1);
  for (std::size_t i = 0; i < 6; ++i) CHECK(std::abs(wide[i % 2 * 3 + i / 2] - expected[i]) < 1e-5);
  std::vector<double> same = whole;
  nearest_of_rank(same, 3, 2, 2);
  CHECK(same == whole);
  same[0] = std::numeric_limits<double>::infinity();
  CHECK_THROWS_AS(nearest_of_rank(same, 3, 2, 1), InvalidInput);
}
