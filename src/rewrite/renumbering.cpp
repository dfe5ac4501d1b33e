// Which experts of a layer stay, under which numbers, and which of their atomic experts.

#include "rewrite/renumbering.h"

namespace moetrim {

std::vector<const PlanLayer*> written_layers(const Model& model, const Plan& plan, Mtp mtp) {
  std::vector<const PlanLayer*> out;
  for (const PlanLayer& layer : plan.layers) {
    if (layer.layer < model.layers || mtp == Mtp::prune) out.push_back(&layer);
  }
  return out;
}

Renumbering::Renumbering(const Model& model, const Plan& plan, Mtp mtp)
    : keep_(static_cast<std::size_t>(model.layers + model.mtp_layers)), slots_(keep_.size()), router_rows_(keep_.size()), atoms_(keep_.size()) {
  for (const PlanLayer* layer : written_layers(model, plan, mtp)) {
    const auto index = static_cast<std::size_t>(layer->layer);
    keep_.at(index) = layer->keep;
    router_rows_[index] = moetrim::router_rows(plan, *layer);
    slots_[index].resize(static_cast<std::size_t>(model.experts));
    int slot = 0;
    for (const int expert : layer->keep) slots_[index].at(static_cast<std::size_t>(expert)).push_back(slot++);
    for (const AtomRanges& ranges : layer->atoms) atoms_[index].push_back(std::make_shared<const AtomRanges>(ranges));
  }
}

bool Renumbering::covers(int layer) const {
  return layer >= 0 && static_cast<std::size_t>(layer) < keep_.size() && !keep_[static_cast<std::size_t>(layer)].empty();
}

const std::vector<int>& Renumbering::keep(int layer) const { return keep_.at(static_cast<std::size_t>(layer)); }

const std::vector<int>& Renumbering::slots_of(int layer, int expert) const {
  return slots_.at(static_cast<std::size_t>(layer)).at(static_cast<std::size_t>(expert));
}

const std::vector<int>& Renumbering::router_rows(int layer) const { return router_rows_.at(static_cast<std::size_t>(layer)); }

const std::vector<SharedAtoms>& Renumbering::atoms(int layer) const { return atoms_.at(static_cast<std::size_t>(layer)); }

}  // namespace moetrim
