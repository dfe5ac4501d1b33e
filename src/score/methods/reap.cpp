// Router-weighted expert activation pruning: the mean of g |f| over the tokens routed to the expert.
// Source: REAP, arXiv:2510.13999. The published code recomputes ids and gates as softmax top-K of the raw logits for every
// family; here they are the executed ones, so sigmoid gates, biases, groups and renormalisation need no switch.
#include <algorithm>

#include "score/methods.h"
#include "score/published_routing.h"

namespace moetrim::methods {
namespace {

std::vector<double> mean_gated_norm(const StatisticsManifest& manifest, const LayerStatistics& layer, int task,
                                    const ScoreOptions& options) {
  require_published_routing(manifest, options, reap.name, Recomputed::selection_and_gates);
  std::vector<double> scores = layer.task_total(Stat::gated_norm_sum, task);
  const std::vector<double> count = layer.task_total(Stat::routed_count, task);
  // An expert that no token reached is 0/0; a count of 1 makes it 0.
  for (std::size_t e = 0; e < scores.size(); ++e) scores[e] /= std::max(count[e], 1.0);
  return scores;
}

}  // namespace

const ScoringMethod reap{
    .name = "reap",
    .source = "REAP, arXiv:2510.13999",
    .unit = "gated output norm per routed token",
    .official = "the same (up to the router's constant scale) on plain softmax routers; refused on sigmoid, biased and "
                "grouped ones",
    .score = mean_gated_norm,
};

}  // namespace moetrim::methods
