// How many tokens were routed to the expert.
// Source: the usual baseline; `--prune_method frequency` of the code of REAP, arXiv:2510.13999.
#include "score/methods.h"
#include "score/published_routing.h"

namespace moetrim::methods {
namespace {

std::vector<double> routed_tokens(const StatisticsManifest& manifest, const LayerStatistics& layer, int task,
                                  const ScoreOptions& options) {
  require_published_routing(manifest, options, frequency.name, Recomputed::selection);
  return layer.task_total(Stat::routed_count, task);
}

}  // namespace

const ScoringMethod frequency{
    .name = "frequency",
    .source = "baseline; as in the code of REAP, arXiv:2510.13999",
    .unit = "tokens",
    .official = "the same where the K largest raw logits are the executed set; refused with a selection bias or groups",
    .score = routed_tokens,
};

}  // namespace moetrim::methods
