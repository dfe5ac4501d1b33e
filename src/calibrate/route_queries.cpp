// Queries through the first routers.

#include "moetrim/queries.h"

#include <fmt/format.h>

#include "calibrate/observe.h"
#include "calibrate/run_cut.h"
#include "calibrate/token_groups.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

void check_queries(const Model& model, const Task& queries, Count count, const QueryOptions& options) {
  const auto depths = model.moe_layers().size();
  if (options.depth < 1 || static_cast<std::size_t>(options.depth) > depths) {
    throw UsageError(fmt::format("a depth of {} MoE layers was asked for; the model has {}, choose from 1 to {}", options.depth, depths,
                                 depths));
  }
  if (options.tcess_top_k < 1 || options.tcess_top_k > model.experts) {
    throw UsageError(fmt::format("the number of marked logits must be from 1 to {}, got {}", model.experts, options.tcess_top_k));
  }
  for (const Demonstration& query : queries.demonstrations) {
    const auto [begin, end] = counted_range(query, count);
    if (begin < end) continue;
    throw InvalidInput(fmt::format("{}:{}: no token of this query counts; choose another --count", queries.file.string(), query.line));
  }
}

/// What a calibration on the same text would run with.
CalibrateOptions as_calibration(Count count, const QueryOptions& options) {
  CalibrateOptions out;
  static_cast<RunOptions&>(out) = options;
  out.count = count;
  return out;
}

std::vector<QueryRouting> empty_routings(const TokenGroup& group) {
  std::vector<QueryRouting> routings;
  for (const MeasuredSequence& query : group.sequences) routings.push_back({.tokens = query.count_end - query.count_begin, .layers = {}});
  return routings;
}

}  // namespace

std::vector<QueryRouting> route_queries(const Model& model, const Task& queries, Count count, const QueryOptions& options) {
  check_queries(model, queries, count, options);
  const std::vector<Task> tasks{queries};
  const CalibrateOptions run = as_calibration(count, options);
  const auto groups = make_groups(tasks, run, calibration_memory(model, tasks, run));
  const int last = model.moe_layers()[static_cast<std::size_t>(options.depth - 1)];
  const ObserveOptions observed{.tcess_top_k = options.tcess_top_k, .tcess_threshold = options.tcess_threshold};
  std::int64_t done = 0;
  std::int64_t total = 0;
  for (const TokenGroup& group : groups) total += static_cast<std::int64_t>(group.batch.ids.size()) * (last + 1);
  std::vector<QueryRouting> out;
  Forward forward(model, forward_options(model, options));
  RoutedLayer routed;
  for (const TokenGroup& group : groups) {
    std::vector<QueryRouting> routings = empty_routings(group);
    forward.begin_to_router(group.batch, last);
    while (!forward.done()) {
      forward.run_layer(routed);
      for (std::size_t q = 0; routed.tokens > 0 && q < routings.size(); ++q) {
        routings[q].layers.push_back(observe_query(routed, group.sequences[q], observed));
      }
      done += static_cast<std::int64_t>(group.batch.ids.size());
      if (options.progress) options.progress(done, total);
      if (options.stop != nullptr && *options.stop) throw Interrupted("stopped; queries start from their beginning");
    }
    std::move(routings.begin(), routings.end(), std::back_inserter(out));
  }
  return out;
}

}  // namespace moetrim
