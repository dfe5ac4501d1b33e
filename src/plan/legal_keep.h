// Which numbers of experts a layer can keep, private to the stage.
#pragma once

#include <string>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// The legal numbers: multiples of `step`, from `least` to `most`. `step` is also the number of groups that keep alike.
struct LegalCounts {
  int step = 1;
  int least = 1;
  int most = 1;
};

/// @throws InvalidInput when the router cannot choose among its own experts, or cannot be regrouped.
LegalCounts legal_counts(const RouterLimits& limits, bool regroup);

/// Why that many experts are not legal; empty when they are.
std::string keep_problem(const RouterLimits& limits, const LegalCounts& counts, int keep);

/// Protected experts of one group of one layer.
struct ProtectedCount {
  int layer = 0;  ///< absolute id
  int group = 0;
  int count = 0;
};

/// legal_keep, with room for the protected experts.
int legal_keep(const RouterLimits& limits, const KeepBudget& budget, bool regroup,
               const std::vector<ProtectedCount>& protection);

}  // namespace moetrim
