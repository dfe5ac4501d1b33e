// Observers: what a layer did with its tokens to sums. Each is a function over the measured tokens; the routing, gates and
// outputs it sees are those of the forward pass, never recomputed.
#pragma once

#include <vector>

#include "calibrate/token_groups.h"
#include "moetrim/forward.h"
#include "moetrim/queries.h"
#include "moetrim/statistics.h"

namespace moetrim {

struct ObserveOptions {
  int tcess_top_k = 1;
  double tcess_threshold = 0;
};

/// Counts, gate sums, norms, EASY-EP products, soft router mass and extremes.
void observe_layer(const RoutedLayer& routed, const std::vector<MeasuredSequence>& sequences, const ObserveOptions& options,
                   LayerStatistics& out);

/// Kinds of prompts; `out` has room for them.
void observe_prompts(const RoutedLayer& routed, const std::vector<MeasuredSequence>& sequences, LayerStatistics& out);

/// What a layer's router alone says about one query.
LayerRouting observe_query(const RoutedLayer& routed, const MeasuredSequence& sequence, const ObserveOptions& options);

/// Sums of gT o and of its square, over all tokens that ran.
void observe_products(const ReversedLayer& reversed, const std::vector<MeasuredSequence>& sequences, AtomStatistics& out);

/// Pairs of experts that a token used in one MoE layer and in the next.
/// @param from  [T, K] ids of the earlier layer
void observe_transitions(const std::vector<std::int32_t>& from, const RoutedLayer& to,
                         const std::vector<MeasuredSequence>& sequences, LayerStatistics& out);

}  // namespace moetrim
