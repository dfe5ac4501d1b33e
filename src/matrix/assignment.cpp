// The optimal assignment: shortest augmenting paths after a column reduction.

#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/matrix.h"

namespace moetrim {

namespace {

constexpr int kNone = -1;

/// Costs to be made least. A column has a price; what a row pays for it is its cost less the price, and every assigned row
/// has a column that is cheapest for it.
class Assignment {
 public:
  Assignment(std::span<const double> values, std::size_t n, double sign)
      : values_(values), n_(n), sign_(sign), price_(n), row_price_(n), row_of_(n, kNone), column_of_(n, kNone) {}

  std::vector<int> solve() {
    reduce_columns();
    reduce_rows();
    for (std::size_t row = 0; row < n_; ++row) {
      if (column_of_[row] == kNone) augment(row);
    }
    return column_of_;
  }

 private:
  double cost(std::size_t row, std::size_t column) const { return sign_ * values_[row * n_ + column]; }

  void assign(std::size_t row, std::size_t column) {
    row_of_[column] = static_cast<int>(row);
    column_of_[row] = static_cast<int>(column);
  }

  /// Every column is priced at its least cost and goes to that row, if it is still free. Walks along rows, as values lie.
  void reduce_columns() {
    std::vector<std::size_t> least(n_);
    for (std::size_t column = 0; column < n_; ++column) price_[column] = cost(0, column);
    for (std::size_t row = 1; row < n_; ++row) {
      for (std::size_t column = 0; column < n_; ++column) {
        if (cost(row, column) >= price_[column]) continue;
        price_[column] = cost(row, column);
        least[column] = row;
      }
    }
    for (std::size_t column = 0; column < n_; ++column) {
      if (column_of_[least[column]] == kNone) assign(least[column], column);
    }
  }

  /// A free row's price is the least it would pay; it takes that column if nobody has it.
  void reduce_rows() {
    for (std::size_t row = 0; row < n_; ++row) {
      if (column_of_[row] != kNone) {
        const auto column = static_cast<std::size_t>(column_of_[row]);
        row_price_[row] = cost(row, column) - price_[column];
        continue;
      }
      std::size_t best = 0;
      double least = std::numeric_limits<double>::infinity();
      for (std::size_t column = 0; column < n_; ++column) {
        const double pays = cost(row, column) - price_[column];
        if (pays < least) least = pays, best = column;
      }
      row_price_[row] = least;
      if (row_of_[best] == kNone) assign(row, best);
    }
  }

  /// Dijkstra's algorithm from a free row to the nearest free column, over reduced costs; then prices change so that the path
  /// costs nothing, and every row on it takes the next column.
  void augment(std::size_t first) {
    constexpr double kFar = std::numeric_limits<double>::infinity();
    distance_.assign(n_, kFar);
    before_.assign(n_, first);
    open_.resize(n_);
    for (std::size_t column = 0; column < n_; ++column) open_[column] = column;
    std::vector<std::size_t> closed;
    std::size_t row = first, end = 0;
    for (double so_far = 0;;) {
      std::size_t nearest = 0;
      for (std::size_t at = 0; at < open_.size(); ++at) {
        const std::size_t column = open_[at];
        const double through = so_far + (cost(row, column) - row_price_[row] - price_[column]);
        if (through < distance_[column]) distance_[column] = through, before_[column] = row;
        if (is_nearer(column, open_[nearest])) nearest = at;
      }
      end = open_[nearest];
      so_far = distance_[end];
      if (row_of_[end] == kNone) {
        change_prices(first, closed, so_far);
        break;
      }
      closed.push_back(end);
      open_[nearest] = open_.back();
      open_.pop_back();
      row = static_cast<std::size_t>(row_of_[end]);
    }
    take_path(first, end);
  }

  /// Ties go to a column that nobody has, which ends the search, then to the lower one.
  bool is_nearer(std::size_t column, std::size_t other) const {
    if (distance_[column] != distance_[other]) return distance_[column] < distance_[other];
    const bool is_free = row_of_[column] == kNone, other_is_free = row_of_[other] == kNone;
    return is_free != other_is_free ? is_free : column < other;
  }

  void change_prices(std::size_t first, const std::vector<std::size_t>& closed, double length) {
    row_price_[first] += length;
    for (const std::size_t column : closed) {
      const double change = length - distance_[column];
      price_[column] -= change;
      row_price_[static_cast<std::size_t>(row_of_[column])] += change;
    }
  }

  void take_path(std::size_t first, std::size_t column) {
    for (;;) {
      const std::size_t row = before_[column];
      const int next = column_of_[row];
      assign(row, column);
      if (row == first) return;
      column = static_cast<std::size_t>(next);
    }
  }

  std::span<const double> values_;
  std::size_t n_;
  double sign_;
  std::vector<double> price_, row_price_;
  std::vector<int> row_of_, column_of_;
  // Of the present search.
  std::vector<double> distance_;
  std::vector<std::size_t> before_, open_;
};

}  // namespace

std::vector<int> optimal_assignment(std::span<const double> values, std::size_t n, Optimum optimum) {
  if (values.size() != n * n) throw Error(fmt::format("{} values are no matrix of {} rows and columns", values.size(), n));
  for (const double value : values) {
    if (!std::isfinite(value)) {
      throw InvalidInput("an assignment's values are not all finite numbers: the weights or activations they come from hold "
                         "infinities or NaN; check the file with moetrim verify --deep");
    }
  }
  if (n == 0) return {};
  return Assignment(values, n, optimum == Optimum::least ? 1.0 : -1.0).solve();
}

}  // namespace moetrim
