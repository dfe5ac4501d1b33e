// Which experts of a layer stay, under which numbers, and which of their atomic experts.
#pragma once

#include <vector>

#include "moetrim/family.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim {

/// The layers of the plan that are written as it says: multi-token-prediction blocks only when they are pruned.
std::vector<const PlanLayer*> written_layers(const Model& model, const Plan& plan, Mtp mtp);

/// Old expert ids to slots, the experts of the new checkpoint. Layers that the plan does not name keep all of theirs.
class Renumbering {
 public:
  /// Of the layers that written_layers() has. Expects a plan that check_plan accepts.
  Renumbering(const Model& model, const Plan& plan, Mtp mtp);

  /// True when the plan says something about this layer.
  bool covers(int layer) const;
  /// The old id of every slot. Only for layers that are covered.
  const std::vector<int>& keep(int layer) const;
  /// The slots that take an expert's tensors, ascending; none for an expert that is dropped. Only for layers that are covered
  /// and experts that exist.
  const std::vector<int>& slots_of(int layer, int expert) const;
  /// Old ids of the router's rows. Only for layers that are covered.
  const std::vector<int>& router_rows(int layer) const;
  /// Parallel to keep(): the atomic experts that stay; empty when the plan keeps experts whole. Only for layers that are
  /// covered.
  const std::vector<SharedAtoms>& atoms(int layer) const;

 private:
  std::vector<std::vector<int>> keep_;                 ///< [layers and blocks], empty where not covered
  std::vector<std::vector<std::vector<int>>> slots_;   ///< [layers and blocks][E], empty where not covered
  std::vector<std::vector<int>> router_rows_;          ///< [layers and blocks], empty where not covered
  std::vector<std::vector<SharedAtoms>> atoms_;  ///< [layers and blocks][kept]
};

}  // namespace moetrim
