// The nearest patterns of a text: all products of texts and patterns at once.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moetrim/error.h"
#include "moetrim/matrix.h"
#include "moetrim/patterns.h"

namespace moetrim {
namespace {

constexpr std::size_t kTextsAtOnce = 64;  // bounds the products that are held

double squares(std::span<const float> values) {
  return std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
}

/// Compares texts with the rows of a table, at most kTextsAtOnce at a time.
class Comparison {
 public:
  Comparison(const SignatureTable& table, const RetrieveOptions& options)
      : table_(table),
        options_(options),
        width_(static_cast<std::size_t>(table.depth) * static_cast<std::size_t>(table.experts)) {
    for (std::size_t row = 0; row < table.owner.size(); ++row) row_squares_.push_back(squares(row_of(row)));
  }

  std::vector<Retrieval> compare(std::span<const TextRouting> texts) const {
    const std::size_t rows = table_.owner.size();
    std::vector<float> a;
    for (const TextRouting& text : texts) {
      const auto& values = text.shares[static_cast<std::size_t>(table_.stat)];
      a.insert(a.end(), values.begin(), values.begin() + static_cast<std::ptrdiff_t>(width_));
    }
    std::vector<float> products(texts.size() * rows, 0.0F);
    add_product(a, table_.rows, products, {.rows = texts.size(), .columns = rows, .depth = width_});
    std::vector<Retrieval> out;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      out.push_back(judge(distances(std::span(a).subspan(i * width_, width_), std::span(products).subspan(i * rows, rows))));
    }
    return out;
  }

 private:
  std::span<const float> row_of(std::size_t row) const { return std::span(table_.rows).subspan(row * width_, width_); }

  /// Of a text from every pattern: that of its nearest row.
  std::vector<double> distances(std::span<const float> text, std::span<const float> products) const {
    std::vector<double> out(table_.names.size(), std::numeric_limits<double>::infinity());
    const double text_squares = squares(text);
    for (std::size_t row = 0; row < products.size(); ++row) {
      double& nearest = out[table_.owner[row]];
      nearest = std::min(nearest, distance(text_squares, row_squares_[row], products[row]));
    }
    return out;
  }

  double distance(double text_squares, double row_squares, double product) const {
    if (table_.stat == SignatureStat::tcess_logit_sum) return std::max(0.0, text_squares - 2 * product + row_squares);
    const double lengths = std::sqrt(text_squares * row_squares);
    return lengths > 0 ? std::max(0.0, 1 - product / lengths) : 1;
  }

  Retrieval judge(const std::vector<double>& distances) const {
    std::vector<std::size_t> order(distances.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const std::size_t wanted = std::max<std::size_t>(2, static_cast<std::size_t>(options_.nearest));
    const auto last = order.begin() + static_cast<std::ptrdiff_t>(std::min(wanted, order.size()));
    std::partial_sort(order.begin(), last, order.end(), [&](std::size_t a, std::size_t b) {
      return distances[a] != distances[b] ? distances[a] < distances[b] : a < b;
    });
    Retrieval out;
    for (auto i = order.begin(); i != last && std::ssize(out.nearest) < options_.nearest; ++i) {
      out.nearest.push_back({table_.names[*i], distances[*i]});
    }
    const double own = distances[order.front()];
    const double limit = options_.limit.value_or(table_.limits[order.front()]);
    const double second = order.size() > 1 ? distances[order[1]] : std::numeric_limits<double>::infinity();
    const double border = std::min(limit, second);
    out.confidence = border > 0 ? std::max(0.0, 1 - own / border) : 0;
    out.fits = own <= limit && out.confidence >= options_.threshold;
    return out;
  }

  const SignatureTable& table_;
  const RetrieveOptions& options_;
  std::size_t width_;
  std::vector<double> row_squares_;
};

}  // namespace

std::vector<Retrieval> retrieve(const SignatureTable& table, std::span<const TextRouting> texts,
                                const RetrieveOptions& options) {
  if (table.names.empty()) throw InvalidInput("the library holds no pattern; add one with moetrim patterns add");
  const Comparison comparison(table, options);
  std::vector<Retrieval> out;
  for (std::size_t begin = 0; begin < texts.size(); begin += kTextsAtOnce) {
    auto part = comparison.compare(texts.subspan(begin, std::min(kTextsAtOnce, texts.size() - begin)));
    std::move(part.begin(), part.end(), std::back_inserter(out));
  }
  return out;
}

}  // namespace moetrim
