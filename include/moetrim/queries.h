// Queries: what the routers of the first MoE layers make of a text, from reading and running little more than those routers.
#pragma once

#include <cstdint>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/run_options.h"
#include "moetrim/text.h"

namespace moetrim {

/// Sums over a query's counted tokens in one MoE layer, each [E]; what the Stat of the same name is in moetrim/statistics.h.
struct LayerRouting {
  int layer = 0;                         ///< absolute
  std::vector<double> routed_count;
  std::vector<double> gate_sum;
  std::vector<double> router_mass;
  std::vector<double> tcess_logit_sum;
};

struct QueryRouting {
  std::int64_t tokens = 0;               ///< that count
  std::vector<LayerRouting> layers;      ///< of the first MoE layers, ascending
};

struct QueryOptions : RunOptions {
  int depth = 1;                         ///< how many MoE layers, from the first one on
  int tcess_top_k = 1;                   ///< see CalibrateOptions
  double tcess_threshold = -1;
};

/// Runs queries up to the router of the last MoE layer asked for, all of them in one pass where the memory allows it, and sums
/// up what the routers did. Of the checkpoint it reads the embedding rows of tokens that occur, the layers before that router,
/// of their experts only those that some token was routed to, and attention, norms and router of the last layer.
/// RunOptions::reading counts the bytes.
///
/// The sums are those that a calibration on the query alone would record.
/// @return one per demonstration of `queries` in options.share, in their order
/// @throws UsageError for a depth that the model does not have; InvalidInput when a query has no counted token or a value
///         becomes NaN; OutOfResources when not even one query fits into the memory; Interrupted after `stop`.
std::vector<QueryRouting> route_queries(const Model& model, const Task& queries, Count count, const QueryOptions& options);

}  // namespace moetrim
