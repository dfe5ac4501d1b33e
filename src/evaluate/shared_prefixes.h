// Plans that agree on the first layers run them once.
#pragma once

#include <span>
#include <vector>

#include "moetrim/forward.h"

namespace moetrim {

/// A copy of the tokens on its way through the layers.
struct Copy {
  int from = -1;    ///< the copy whose states it begins with; -1: the embeddings
  int layer = 0;    ///< the first one that it runs itself
  int plan = -1;    ///< whose masks it runs with; -1: none
};

/// What a pass over the weights runs for a model and some plans.
struct SharedPass {
  std::vector<Copy> copies;     ///< in the order in which they begin; the first is the model itself
  std::vector<int> copy_of;     ///< [plans] the copy that a plan is measured by; 0: it changes nothing
};

/// Every plan begins where it first differs from the copy that it agrees with longest, of several the first; the model counts as
/// a plan without masks. One that differs from none costs nothing.
/// @param masks  [plans], each [layers]
SharedPass share_prefixes(std::span<const ExpertMask> masks);

}  // namespace moetrim
