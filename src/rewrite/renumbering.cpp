// Which experts of a layer stay, under which number, and which of their atomic experts.

#include "rewrite/renumbering.h"

namespace moetrim {

Renumbering::Renumbering(const Model& model, const Plan& plan, Mtp mtp)
    : keep_(static_cast<std::size_t>(model.layers + model.mtp_layers)), new_id_(keep_.size()), atoms_(keep_.size()) {
  for (const PlanLayer& layer : plan.layers) {
    if (layer.layer >= model.layers && mtp != Mtp::prune) continue;
    const auto index = static_cast<std::size_t>(layer.layer);
    keep_.at(index) = layer.keep;
    new_id_.at(index).assign(static_cast<std::size_t>(model.experts), -1);
    int next = 0;
    for (const int expert : layer.keep) new_id_[index].at(static_cast<std::size_t>(expert)) = next++;
    for (const AtomRanges& ranges : layer.atoms) atoms_[index].push_back(std::make_shared<const AtomRanges>(ranges));
  }
}

bool Renumbering::covers(int layer) const {
  return layer >= 0 && static_cast<std::size_t>(layer) < keep_.size() && !keep_[static_cast<std::size_t>(layer)].empty();
}

const std::vector<int>& Renumbering::keep(int layer) const { return keep_.at(static_cast<std::size_t>(layer)); }

int Renumbering::new_id(int layer, int expert) const {
  return new_id_.at(static_cast<std::size_t>(layer)).at(static_cast<std::size_t>(expert));
}

const std::vector<SharedAtoms>& Renumbering::atoms(int layer) const { return atoms_.at(static_cast<std::size_t>(layer)); }

}  // namespace moetrim
