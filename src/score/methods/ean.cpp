// Expert activation norm: the summed length of the expert's outputs before the gate.
// Source: `ean_sum` in the code of REAP, arXiv:2510.13999. The sum, not `ean_mean`: frequency is part of the score.
#include "score/methods.h"
#include "score/published_routing.h"

namespace moetrim::methods {
namespace {

std::vector<double> summed_norm(const StatisticsManifest& manifest, const LayerStatistics& layer, int task,
                                const ScoreOptions& options) {
  require_published_routing(manifest, options, ean.name, Recomputed::selection);
  return layer.task_total(Stat::norm_sum, task);
}

}  // namespace

const ScoringMethod ean{
    .name = "ean",
    .source = "ean_sum in the code of REAP, arXiv:2510.13999",
    .unit = "output norm x tokens",
    .official = "the same where the K largest raw logits are the executed set; refused with a selection bias or groups",
    .score = summed_norm,
};

}  // namespace moetrim::methods
