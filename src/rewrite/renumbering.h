// Which experts of a layer stay, and under which number.
#pragma once

#include <vector>

#include "moetrim/family.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim {

/// Old expert ids to new ones. Layers that the plan does not name keep all of theirs.
class Renumbering {
 public:
  /// Expects a plan that check_plan accepts. Multi-token-prediction blocks are covered only when they are pruned.
  Renumbering(const Model& model, const Plan& plan, Mtp mtp);

  /// True when the plan says something about this layer.
  bool covers(int layer) const;
  /// Old ids in their new order. Only for layers that are covered.
  const std::vector<int>& keep(int layer) const;
  /// The new id, -1 for an expert that is dropped. Only for layers that are covered and experts that exist.
  int new_id(int layer, int expert) const;

 private:
  std::vector<std::vector<int>> keep_;    ///< [layers and blocks], empty where not covered
  std::vector<std::vector<int>> new_id_;  ///< [layers and blocks][E], empty where not covered
};

}  // namespace moetrim
