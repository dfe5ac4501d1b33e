// M-SMoE: the most used experts are dominant, every other one joins the dominant whose router logits are most like its own.
// Source: arXiv:2310.01334. The published loop for equal numbers of groups goes over ids where it means ranks of usage, so
// that some experts land in a group by their id; here every grouping goes by ranks.
#include <algorithm>

#include "plan/merging/groups.h"
#include "plan/merging/methods.h"
#include "plan/merging/similarity.h"

namespace moetrim::merging {
namespace {

std::vector<MergeGroup> by_dominant_experts(const MergeFacts& facts, int count, const MergeOptions&) {
  const auto n = static_cast<std::size_t>(facts.size());
  const auto similarity = as_similarity(cosines_of_gram(facts.gram, n));
  const std::vector<int> order = descending(facts.usage);
  const std::span dominant = std::span(order).first(static_cast<std::size_t>(count));
  const auto nearest = [&](int expert) {
    const auto* row = similarity.data() + static_cast<std::size_t>(expert) * n;
    const auto best = std::max_element(dominant.begin(), dominant.end(), [&](int a, int b) { return row[a] < row[b]; });
    return best - dominant.begin();
  };
  std::vector<int> labels(n);
  for (std::size_t rank = 0; rank < n; ++rank) {
    const auto label = rank < dominant.size() ? static_cast<std::ptrdiff_t>(rank) : nearest(order[rank]);
    labels[static_cast<std::size_t>(order[rank])] = static_cast<int>(label);
  }
  return groups_into(labels, dominant, facts.usage);
}

}  // namespace

const MergingMethod m_smoe{
    .name = "m-smoe",
    .source = "M-SMoE, arXiv:2310.01334",
    .weights = "routed tokens",
    .align = Alignment::weights,
    .needs_logits = true,
    .needs_outputs = false,
    .chooses_features = false,
    .has_linkage = false,
    .has_group_size = false,
    .adaptive = true,
    .group = by_dominant_experts,
};

}  // namespace moetrim::merging
