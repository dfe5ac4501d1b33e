// Output-aware expert importance with token contribution: sum of d g |f| over the tokens routed to the expert.
// Source: EASY-EP, arXiv:2504.06792. d = max(0, 1 - cos(h, h + r)) says how far the routed output r turns the residual h. A sum, not a mean:
// frequency and the length of demonstrations are inside the score.
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> turning_gated_norm(const StatisticsManifest&, const LayerStatistics& layer, int task, const ScoreOptions&) {
  return layer.task_total(Stat::easy_ep_sum, task);
}

}  // namespace

// The published code reads the model's own ids and gates, so both variants are one; it rounds h + r to bf16 and the cosine
// to fp32, which moves d by up to some percent where a token barely turns.
const ScoringMethod easy_ep{
    .name = "easy-ep",
    .source = "EASY-EP, arXiv:2504.06792: output-aware importance with token contribution",
    .unit = "turn x gated output norm x tokens",
    .official = "",
    .score = turning_gated_norm,
};

}  // namespace moetrim::methods
