// Scores to a kept set.
#include "plan/select.h"

#include <algorithm>
#include <numeric>

namespace moetrim {

std::vector<int> best_experts(std::span<const double> scores, const std::vector<bool>& protect, int keep) {
  std::vector<int> ids(scores.size());
  std::iota(ids.begin(), ids.end(), 0);
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

}  // namespace moetrim
