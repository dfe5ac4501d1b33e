// k-means without chance.
#include "plan/merging/k_means.h"

#include <algorithm>
#include <utility>

#include "plan/merging/groups.h"

namespace moetrim {
namespace {

constexpr int kMostRounds = 300;

class KMeans {
 public:
  KMeans(std::span<const double> points, std::size_t n, std::size_t count)
      : points_(points), n_(n), count_(count), centres_(count * count), labels_(n, -1), distances_(n) {}

  /// Centres that are far from each other.
  void start(std::size_t first) {
    std::vector<double> nearest(n_);
    for (std::size_t c = 0; c < count_; ++c) {
      const auto farthest = std::max_element(nearest.begin(), nearest.end()) - nearest.begin();
      const std::size_t next = c == 0 ? first : static_cast<std::size_t>(farthest);
      std::copy_n(point(next), count_, centre(c));
      for (std::size_t i = 0; i < n_; ++i) {
        const double distance = squared_distance(i, c);
        nearest[i] = c == 0 ? distance : std::min(nearest[i], distance);
      }
    }
  }

  /// @return whether any point changed its cluster.
  bool assign() {
    std::vector<int> labels(n_);
    for (std::size_t i = 0; i < n_; ++i) labels[i] = nearest_centre(i);
    fill_empty(labels);
    return std::exchange(labels_, labels) != labels_;
  }

  void move_centres() {
    std::fill(centres_.begin(), centres_.end(), 0.0);
    std::vector<double> sizes(count_);
    for (std::size_t i = 0; i < n_; ++i) {
      const auto c = static_cast<std::size_t>(labels_[i]);
      sizes[c] += 1;
      for (std::size_t k = 0; k < count_; ++k) centre(c)[k] += point(i)[k];
    }
    for (std::size_t c = 0; c < count_; ++c) {
      for (std::size_t k = 0; k < count_; ++k) centre(c)[k] /= sizes[c];
    }
  }

  const std::vector<int>& labels() const { return labels_; }

 private:
  const double* point(std::size_t i) const { return points_.data() + i * count_; }
  double* centre(std::size_t c) { return centres_.data() + c * count_; }

  double squared_distance(std::size_t i, std::size_t c) {
    double sum = 0;
    for (std::size_t k = 0; k < count_; ++k) {
      const double difference = point(i)[k] - centre(c)[k];
      sum += difference * difference;
    }
    return sum;
  }

  int nearest_centre(std::size_t i) {
    int best = 0;
    for (std::size_t c = 0; c < count_; ++c) {
      const double distance = squared_distance(i, c);
      if (c > 0 && !(distance < distances_[i])) continue;
      distances_[i] = distance;
      best = static_cast<int>(c);
    }
    return best;
  }

  void fill_empty(std::vector<int>& labels) {
    std::vector<int> sizes(count_);
    for (const int label : labels) ++sizes[static_cast<std::size_t>(label)];
    for (std::size_t c = 0; c < count_; ++c) {
      if (sizes[c] > 0) continue;
      std::size_t farthest = n_;
      for (std::size_t i = 0; i < n_; ++i) {
        if (sizes[static_cast<std::size_t>(labels[i])] < 2) continue;
        if (farthest == n_ || distances_[i] > distances_[farthest]) farthest = i;
      }
      --sizes[static_cast<std::size_t>(labels[farthest])];
      ++sizes[c];
      labels[farthest] = static_cast<int>(c);
      distances_[farthest] = 0;
    }
  }

  std::span<const double> points_;
  std::size_t n_, count_;
  std::vector<double> centres_;    ///< [count, count]
  std::vector<int> labels_;        ///< [n]; -1: none yet
  std::vector<double> distances_;  ///< [n] squared, to the nearest centre
};

}  // namespace

std::vector<int> k_means(std::span<const double> points, std::size_t n, std::size_t count, std::size_t first) {
  KMeans means(points, n, count);
  means.start(first);
  for (int round = 0; round < kMostRounds && means.assign(); ++round) means.move_centres();
  return by_first_appearance(means.labels());
}

}  // namespace moetrim
