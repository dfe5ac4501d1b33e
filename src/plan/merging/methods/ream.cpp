// REAM: the most salient experts are centroids, and each in turn takes those nearest to it, up to a largest group.
// Source: arXiv:2604.04356. Saliency is REAP's score of the executed routing, over all tokens alike.
#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "plan/merging/groups.h"
#include "plan/merging/methods.h"
#include "plan/merging/similarity.h"

namespace moetrim::merging {
namespace {

/// 1 - the mean of two cosines: of mean outputs and of router logits. [n, n]
std::vector<double> distances(const MergeFacts& facts) {
  const auto n = static_cast<std::size_t>(facts.size());
  auto values = cosines_of_rows(facts.outputs, n, facts.hidden);
  const auto logits = cosines_of_gram(facts.gram, n);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1 - (values[i] + logits[i]) / 2;
  return values;
}

void check_room(int experts, int count, int group_size) {
  if (static_cast<std::int64_t>(count) * group_size >= experts) return;
  throw InvalidInput(fmt::format("{} groups of at most {} have no room for {} experts; give --group-size at least {}", count,
                                 group_size, experts, (experts + count - 1) / count));
}

std::vector<MergeGroup> around_centroids(const MergeFacts& facts, int count, const MergeOptions& options) {
  check_room(facts.size(), count, options.group_size);
  const auto n = static_cast<std::size_t>(facts.size());
  const auto distance = distances(facts);
  const std::vector<int> order = descending(facts.saliency);
  const std::span centroids = std::span(order).first(static_cast<std::size_t>(count));
  std::vector<int> left(order.begin() + count, order.end());
  std::sort(left.begin(), left.end());  // of equally near ones the lower id first
  std::vector<int> labels(n);
  for (std::size_t g = 0; g < centroids.size(); ++g) {
    const auto* row = distance.data() + static_cast<std::size_t>(centroids[g]) * n;
    std::stable_sort(left.begin(), left.end(), [&](int a, int b) { return row[a] < row[b]; });
    const auto taken = left.begin() + std::min<std::ptrdiff_t>(options.group_size - 1, std::ssize(left));
    labels[static_cast<std::size_t>(centroids[g])] = static_cast<int>(g);
    for (auto expert = left.begin(); expert != taken; ++expert) {
      labels[static_cast<std::size_t>(*expert)] = static_cast<int>(g);
    }
    left.erase(left.begin(), taken);
    std::sort(left.begin(), left.end());
  }
  return groups_into(labels, centroids, facts.saliency);
}

}  // namespace

const MergingMethod ream{
    .name = "ream",
    .source = "REAM, arXiv:2604.04356",
    .weights = "REAP's score",
    .align = Alignment::weights,
    .needs_logits = true,
    .needs_outputs = true,
    .chooses_features = false,
    .has_linkage = false,
    .has_group_size = true,
    .adaptive = false,
    .group = around_centroids,
};

}  // namespace moetrim::merging
