// Which experts of a layer stay, under which number, and which of their atomic experts.
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
  /// Parallel to keep(): the atomic experts that stay; empty when the plan keeps experts whole. Only for layers that are
  /// covered.
  const std::vector<SharedAtoms>& atoms(int layer) const;

 private:
  std::vector<std::vector<int>> keep_;           ///< [layers and blocks], empty where not covered
  std::vector<std::vector<int>> new_id_;         ///< [layers and blocks][E], empty where not covered
  std::vector<std::vector<SharedAtoms>> atoms_;  ///< [layers and blocks][kept]
};

}  // namespace moetrim
