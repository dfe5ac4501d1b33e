// The gate weight an expert received in all: sum of g over the tokens routed to it.
// Source: SEER-MoE, arXiv:2404.05089 (soft heavy-hitters counting); `weighted_expert_frequency_sum` in the code of REAP.
#include "score/methods.h"
#include "score/published_routing.h"

namespace moetrim::methods {
namespace {

std::vector<double> gate_weight(const StatisticsManifest& manifest, const LayerStatistics& layer, int task,
                                const ScoreOptions& options) {
  require_published_routing(manifest, options, soft_frequency.name, Recomputed::selection_and_gates);
  return layer.task_total(Stat::gate_sum, task);
}

}  // namespace

const ScoringMethod soft_frequency{
    .name = "soft-frequency",
    .source = "SEER-MoE, arXiv:2404.05089; weighted_expert_frequency_sum in the code of REAP",
    .unit = "gate weight x tokens",
    .official = "the same (up to the router's constant scale) on plain softmax routers; refused on sigmoid, biased and "
                "grouped ones",
    .score = gate_weight,
};

}  // namespace moetrim::methods
