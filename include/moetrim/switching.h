// Ranked experts switched off or strengthened: a contrast to a plan.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "moetrim/contrast.h"
#include "moetrim/plan.h"
#include "moetrim/statistics.h"

namespace moetrim {

enum class SwitchAction {
  drop,        ///< the experts leave the checkpoint
  bias,        ///< they stay, and their selection bias becomes so negative that no token chooses them
  strengthen,  ///< their output is multiplied by a factor
};

/// How many of the ranked experts; exactly one of the two is set.
struct SwitchChoice {
  int top = 0;        ///< the first of the ranking, in whatever layers they are
  int per_layer = 0;  ///< the first of every layer; with router groups and `drop`, as many of every group
};

struct SwitchRequest {
  SwitchAction action = SwitchAction::drop;
  double factor = 1;  ///< of strengthen: finite, not negative, not 1; 0 makes an expert put out zeros
  SwitchChoice choice = {};
};

/// Changes `base` by the first experts of the ranking among those that it keeps.
///
/// A checkpoint has the same number of experts in every layer (and router group), so `drop` needs a choice that takes as
/// many from each. Where `top` does not, the error names the smallest `per_layer` that includes those experts.
/// @param base  of the same checkpoint; ascending, without merged experts. Protected experts cannot be dropped or silenced.
/// @throws UsageError for a choice or factor that says nothing. InvalidInput when contrast, statistics and plan are not of
///         one checkpoint, the ranking has too few experts, the router has no selection bias, a plan has changed such an
///         expert already, or too few experts would remain for the router to choose among.
Plan switch_experts(const Statistics& statistics, const Contrast& contrast, const SwitchRequest& request, Plan base);

}  // namespace moetrim
