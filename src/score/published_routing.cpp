// When a published method's own routing is the routing that the model executed.
#include "score/published_routing.h"

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

void require_published_routing(const StatisticsManifest& manifest, const ScoreOptions& options, std::string_view method,
                               Recomputed recomputed) {
  if (options.variant == Variant::executed) return;
  if (!manifest.router_selects_by_logit) {
    throw InvalidInput(fmt::format(
        "{} --variant official: the published code takes the {} largest raw logits, but {} selects with a bias or by groups "
        "(router_selects_by_logit is false), so it would score experts whose outputs were never computed; use --variant "
        "executed",
        method, manifest.experts_per_token, manifest.family));
  }
  if (recomputed == Recomputed::selection_and_gates && manifest.router != "softmax") {
    throw InvalidInput(fmt::format(
        "{} --variant official: the published code weighs with a softmax over the raw logits, but the gates of {} are {} and "
        "only those were recorded; use --variant executed",
        method, manifest.family, manifest.router));
  }
}

}  // namespace moetrim
