// What needs LibTorch of `moetrim patterns`: texts through the first layers.

#include "cli/patterns.h"
#include "moetrim/queries.h"

namespace moetrim::cli {

namespace {

TextRouting per_token(const QueryRouting& routing) {
  TextRouting out;
  for (const LayerRouting& layer : routing.layers) {
    const std::array sums{&layer.routed_count, &layer.gate_sum, &layer.router_mass, &layer.tcess_logit_sum};
    for (std::size_t stat = 0; stat < sums.size(); ++stat) {
      for (const double sum : *sums[stat]) {
        out.shares[stat].push_back(static_cast<float>(sum / static_cast<double>(routing.tokens)));
      }
    }
  }
  return out;
}

std::vector<TextRouting> route(const Session& session, const RunFlags& run, const Model& model, const Task& texts,
                               const StatisticsManifest& marks, int depth) {
  QueryOptions options;
  run.apply(options, session, "route");
  options.depth = depth;
  if (marks.tcess_top_k > 0) {
    options.tcess_top_k = marks.tcess_top_k;
    options.tcess_threshold = marks.tcess_threshold;
  }
  std::vector<TextRouting> out;
  for (const QueryRouting& routing : route_queries(model, texts, Count::all, options)) out.push_back(per_token(routing));
  return out;
}

}  // namespace

void provide_route_texts() { route_texts = route; }

}  // namespace moetrim::cli
