// Scores to a kept set.
#include "plan/select.h"

#include <algorithm>
#include <iterator>
#include <numeric>

namespace moetrim {
namespace {

/// The best `keep` of the experts [begin, end), ascending.
std::vector<int> best_of(std::span<const double> scores, const std::vector<bool>& protect, int begin, int end, int keep) {
  std::vector<int> ids(static_cast<std::size_t>(end - begin));
  std::iota(ids.begin(), ids.end(), begin);
  const auto is_protected = [&](int id) { return !protect.empty() && protect[static_cast<std::size_t>(id)]; };
  // Stable: torch.topk and unstable sorts leave the order of ties to the machine, and unseen experts all tie at zero.
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) {
    if (is_protected(a) != is_protected(b)) return is_protected(a);
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  ids.resize(static_cast<std::size_t>(keep));
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace

std::vector<int> best_experts(std::span<const double> scores, const std::vector<bool>& protect, int keep, int groups) {
  const int size = static_cast<int>(scores.size()) / groups;
  std::vector<int> kept;
  for (int group = 0; group < groups; ++group) {
    const auto best = best_of(scores, protect, group * size, (group + 1) * size, keep / groups);
    kept.insert(kept.end(), best.begin(), best.end());
  }
  return kept;
}

double overlap(const std::vector<int>& a, const std::vector<int>& b) {
  std::vector<int> both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return static_cast<double>(both.size()) / static_cast<double>(a.size() + b.size() - both.size());
}

}  // namespace moetrim
