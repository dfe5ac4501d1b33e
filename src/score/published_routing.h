// When a published method's own routing is the routing that the model executed.
#pragma once

#include <string_view>

#include "moetrim/score.h"

namespace moetrim {

/// What published code recomputes from the raw logits instead of reading it from the forward pass.
enum class Recomputed {
  selection,            ///< the K largest raw logits
  selection_and_gates,  ///< those, weighted by the softmax
};

/// Nothing for Variant::executed. For Variant::official: returns when recomputing gives what was executed.
/// @throws InvalidInput otherwise, since the published score then needs outputs that the model never computed, or gates
///         that it never used.
void require_published_routing(const StatisticsManifest& manifest, const ScoreOptions& options, std::string_view method,
                               Recomputed recomputed);

}  // namespace moetrim
