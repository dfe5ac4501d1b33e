// Agglomerative clustering by the recurrence of Lance and Williams: the distances of a new cluster follow from those of its
// two parts. O(n^3) for n experts of one layer, at most some hundred.
#include "plan/merging/linkage.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "plan/merging/groups.h"

namespace moetrim {
namespace {

class Clusters {
 public:
  Clusters(std::vector<double> distances, std::size_t n, Linkage linkage)
      : distances_(std::move(distances)), n_(n), linkage_(linkage), sizes_(n, 1), of_(n) {
    std::iota(of_.begin(), of_.end(), 0);
  }

  void merge_closest() {
    std::size_t a = 0;
    std::size_t b = 0;
    double least = 0;
    for (std::size_t i = 0; i < n_; ++i) {
      if (sizes_[i] == 0) continue;
      for (std::size_t j = i + 1; j < n_; ++j) {
        if (sizes_[j] == 0 || (b > 0 && !(at(i, j) < least))) continue;
        least = at(i, j);
        a = i;
        b = j;
      }
    }
    merge(a, b);
  }

  const std::vector<int>& labels() const { return of_; }

 private:
  double& at(std::size_t i, std::size_t j) { return distances_[i * n_ + j]; }

  /// b goes into a, the lower.
  void merge(std::size_t a, std::size_t b) {
    for (std::size_t k = 0; k < n_; ++k) {
      if (sizes_[k] == 0 || k == a || k == b) continue;
      at(a, k) = at(k, a) = joined(a, b, k);
    }
    sizes_[a] += std::exchange(sizes_[b], 0);
    std::replace(of_.begin(), of_.end(), static_cast<int>(b), static_cast<int>(a));
  }

  /// From a and b together to k.
  double joined(std::size_t a, std::size_t b, std::size_t k) {
    const double ak = at(a, k);
    const double bk = at(b, k);
    const auto na = static_cast<double>(sizes_[a]);
    const auto nb = static_cast<double>(sizes_[b]);
    const auto nk = static_cast<double>(sizes_[k]);
    switch (linkage_) {
      case Linkage::average: return (na * ak + nb * bk) / (na + nb);
      case Linkage::complete: return std::max(ak, bk);
      case Linkage::single: return std::min(ak, bk);
      case Linkage::ward: break;
    }
    const double ab = at(a, b);
    const double squared = ((na + nk) * ak * ak + (nb + nk) * bk * bk - nk * ab * ab) / (na + nb + nk);
    return std::sqrt(std::max(0.0, squared));
  }

  std::vector<double> distances_;
  std::size_t n_;
  Linkage linkage_;
  std::vector<int> sizes_;  ///< 0: merged into another
  std::vector<int> of_;     ///< [n] lowest member of the expert's cluster
};

}  // namespace

std::vector<int> cluster(std::vector<double> distances, int n, int count, Linkage linkage) {
  Clusters clusters(std::move(distances), static_cast<std::size_t>(n), linkage);
  for (int left = n; left > count; --left) clusters.merge_closest();
  return by_first_appearance(clusters.labels());
}

}  // namespace moetrim
