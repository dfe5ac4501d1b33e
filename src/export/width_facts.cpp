// How wide experts were and are, for the record, the card and the warnings.

#include "export/width_facts.h"

#include <algorithm>

#include <fmt/format.h>

#include "rewrite/atom_layout.h"
#include "rewrite/renumbering.h"

namespace moetrim::export_detail {

bool has_recipe(const OutputTensor& tensor) {
  return std::any_of(tensor.pieces.begin(), tensor.pieces.end(), [](const Piece& piece) { return piece.recipe != nullptr; });
}

std::string WidthFacts::widths() const {
  if (least == most) return std::to_string(most);
  const double share = static_cast<double>(kept_atoms) / static_cast<double>(kept_experts);
  return fmt::format("{} to {}, mean {:.1f}", least, most, share);
}

std::optional<WidthFacts> width_facts(const Model& model, const Plan& plan, std::span<const OutputTensor> tensors, Mtp mtp) {
  WidthFacts out;
  out.slimming = slimming_of(model, plan, mtp);
  if (out.slimming.form == WidthForm::whole || plan.width == 0) return std::nullopt;
  out.before = out.least = plan.width;
  for (const PlanLayer* layer : written_layers(model, plan, mtp)) {
    out.atoms += std::int64_t{plan.experts} * plan.width;
    for (const AtomRanges& atoms : layer->atoms) {
      const std::int64_t width = atom_count(atoms);
      out.least = std::min(out.least, width);
      out.most = std::max(out.most, width);
      out.kept_atoms += width;
      ++out.kept_experts;
    }
  }
  for (const OutputTensor& tensor : tensors) {
    if (!tensor.computation || tensor.computation->result != Computation::Result::fp8 || has_recipe(tensor)) continue;
    ++out.quantised_again;
    out.block = AtomLayout(model, *tensor.computation->weight).block();
  }
  return out;
}

}  // namespace moetrim::export_detail
