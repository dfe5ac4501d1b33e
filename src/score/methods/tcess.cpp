// Task-conditioned expected selection score: how confidently the router chose the expert, averaged over ALL counted tokens.
// Source: PreMoe, arXiv:2505.17639. Published: the raw logit where it is among the k largest and its share of their softmax is at least r.
// Zero stands for "not selected" there, so an expert that is often chosen with a negative logit ranks below one that never
// is (in the one pattern the authors ship, 234 of 256 values are negative), and the k largest raw logits need not be the
// executed set. Our default adds the local softmax share itself, over the executed set: never negative.
#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> expected_selection(const StatisticsManifest& manifest, const LayerStatistics& layer, int task,
                                       const ScoreOptions& options) {
  const bool official = options.variant == Variant::official;
  if (official && manifest.tcess_top_k < 1) {
    throw InvalidInput(
        "tcess --variant official: these statistics hold no marks on raw logits (tcess_top_k is 0); calibrate again with a k");
  }
  std::vector<double> scores = layer.task_total(official ? Stat::tcess_logit_sum : Stat::tcess_sum, task);
  const double tokens = std::max(layer.task_tokens(task), 1.0);
  for (double& value : scores) value /= tokens;
  return scores;
}

}  // namespace

const ScoringMethod tcess{
    .name = "tcess",
    .source = "PreMoe, arXiv:2505.17639 (TCESS): expected selection score from router logits",
    .unit = "selection share per counted token",
    .official = "raw logits of the k largest, signs as published: experts chosen with negative logits rank below unused ones",
    .score = expected_selection,
};

}  // namespace moetrim::methods
