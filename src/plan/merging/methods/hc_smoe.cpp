// HC-SMoE: hierarchical clustering on what experts put out on average, over all tokens.
// Source: arXiv:2410.08589. The published scripts misspell the method and run k-means, and their complete linkage merges the
// farthest pair; this is the textbook's clustering, which gives every cluster at least one expert.
#include "moetrim/error.h"
#include "plan/merging/groups.h"
#include "plan/merging/linkage.h"
#include "plan/merging/methods.h"
#include "plan/merging/similarity.h"

namespace moetrim::merging {
namespace {

std::vector<double> distances(const MergeFacts& facts, std::size_t n, MergeFeatures features) {
  switch (features) {
    case MergeFeatures::outputs: return distances_of_rows(facts.outputs, n, facts.hidden);
    case MergeFeatures::logits: return distances_of_gram(facts.gram, n);
    case MergeFeatures::weights: return facts.weight_distances;
  }
  throw Error("features that do not exist");
}

std::vector<MergeGroup> by_hierarchy(const MergeFacts& facts, int count, const MergeOptions& options) {
  const auto n = static_cast<std::size_t>(facts.size());
  return groups_of(cluster(distances(facts, n, options.features), facts.size(), count, options.linkage), facts.usage);
}

}  // namespace

const MergingMethod hc_smoe{
    .name = "hc-smoe",
    .source = "HC-SMoE, arXiv:2410.08589",
    .weights = "routed tokens",
    .align = Alignment::none,
    .needs_logits = false,
    .needs_outputs = false,
    .chooses_features = true,
    .has_linkage = true,
    .has_group_size = false,
    .adaptive = false,
    .group = by_hierarchy,
};

}  // namespace moetrim::merging
