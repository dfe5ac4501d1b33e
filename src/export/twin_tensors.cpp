// The tensors of the dequantised twin, and how each one's values lie.

#include "export/twin_tensors.h"

#include <algorithm>
#include <array>
#include <numeric>

#include <fmt/format.h>

#include "export/slab_values.h"
#include "family/place_tensors.h"
#include "moetrim/error.h"
#include "moetrim/quantised.h"
#include "rewrite/renumbering.h"
#include "rewrite/slim_tensors.h"

namespace moetrim::export_detail {

namespace {

bool is_float_of_few_bits(Dtype dtype) {
  constexpr std::array kTypes = {Dtype::f8_e4m3, Dtype::f8_e5m2, Dtype::f8_e8m0, Dtype::f8_e4m3fnuz,
                                 Dtype::f8_e5m2fnuz, Dtype::f4, Dtype::f6_e2m3, Dtype::f6_e3m2};
  return std::find(kTypes.begin(), kTypes.end(), dtype) != kTypes.end();
}

bool is_quantised(const Weight& weight) { return (weight.rule->axes.size() == 2 || weight.fused()) && weight.packed(); }

/// A tensor that the family does not know goes along, unless it belongs to what config.json no longer speaks of.
bool follows(const Model& model, const Tensor& tensor) {
  const auto part = split_part(tensor.name);
  if (part && part->part == Part::input_scale) return false;
  if (is_cache_scale(tensor.name) || tensor.name.ends_with(".output_scale")) return false;
  if ((!part || part->part == Part::values) && !is_float_of_few_bits(tensor.dtype)) return true;
  throw InvalidInput(fmt::format("{}: tensor {} ({}) is part of a quantised weight that family {} does not know, so it cannot be "
                                 "dequantised; write the pruned checkpoint alone", model.checkpoint->folder().string(),
                                 tensor.name, dtype_name(tensor.dtype), model.family->name));
}

/// The name that the weight has where it is not quantised.
std::string plain_name(const TensorRule& rule, const std::string& name) {
  const auto part = split_part(name);
  if (!part) return name;
  return std::string(part->module) + (rule.name.ends_with(".weight") ? ".weight" : "");
}

/// Ids of the experts of a fused weight that are kept.
std::vector<int> kept_experts(const Model& model, const Renumbering& numbers, int layer) {
  if (numbers.covers(layer)) return numbers.keep(layer);
  std::vector<int> all(static_cast<std::size_t>(model.experts));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// What the plan leaves of a weight, and where it goes.
class TwinWeights {
 public:
  TwinWeights(const Model& model, const Plan& plan, Mtp mtp)
      : model_(model), numbers_(model, plan, mtp), slimming_(slimming_of(model, plan, mtp)) {}

  OutputTensor dequantised(const OutputTensor& codes, const TensorPlace& place, const Weight& weight) const {
    auto computation = std::make_shared<Computation>();
    computation->weight = &weight;
    if (weight.fused()) computation->experts = kept_experts(model_, numbers_, place.layer);
    set_atoms(*computation, place, weight);
    OutputTensor out{{plain_name(*weight.rule, codes.spec.name), Dtype::bf16, shape(*computation)}, codes.pieces};
    out.computation = std::move(computation);
    return out;
  }

 private:
  void set_atoms(Computation& computation, const TensorPlace& place, const Weight& weight) const {
    if (slimming_.form != WidthForm::config) return;
    const auto& axes = weight.rule->axes;
    if (std::find(axes.begin(), axes.end(), Axis::S) != axes.end()) {
      computation.zeros = slimming_.shared_width - model_.shared_width;
      if (computation.zeros > 0) computation.atoms = {whole(model_.shared_width)};
    } else if (where_of(weight.rule->role) == Where::experts && numbers_.covers(place.layer)) {
      const auto& atoms = numbers_.atoms(place.layer);
      if (weight.fused()) computation.atoms = atoms;
      else computation.atoms = {atoms.at(static_cast<std::size_t>(numbers_.slots_of(place.layer, place.expert).front()))};
    }
  }

  static SharedAtoms whole(std::int64_t width) {
    return std::make_shared<const AtomRanges>(AtomRanges{{0, static_cast<int>(width)}});
  }

  /// Of the family's plain tensor.
  std::vector<std::int64_t> shape(const Computation& computation) const {
    std::vector<std::int64_t> out;
    for (const Axis axis : computation.weight->rule->axes) out.push_back(length(axis, computation));
    return out;
  }

  std::int64_t length(Axis axis, const Computation& computation) const {
    const bool cut = !computation.atoms.empty();
    if (axis == Axis::E && computation.weight->fused()) return static_cast<std::int64_t>(computation.experts.size());
    if (axis == Axis::S && cut) return slimming_.shared_width;
    if (axis == Axis::F && cut) return slimming_.width;
    if (axis == Axis::F2 && cut) return 2 * slimming_.width;
    return model_.length(axis);
  }

  const Model& model_;
  const Renumbering numbers_;
  const Slimming slimming_;
};

}  // namespace

void add_twin_tensors(TwinRequest& twin, std::span<const OutputTensor> pruned, const Plan& plan, Mtp mtp) {
  const Model& model = *twin.model;
  const TwinWeights weights(model, plan, mtp);
  const auto add = [&](OutputTensor tensor, std::size_t origin) {
    twin.tensors.push_back(std::move(tensor));
    twin.origins.push_back(origin);
  };
  for (std::size_t i = 0; i < pruned.size(); ++i) {
    const OutputTensor& tensor = pruned[i];
    const Tensor* stored = tensor.pieces.empty() ? nullptr : tensor.pieces.front().source;
    const TensorPlace place = stored ? place_of(model, *stored) : TensorPlace{};
    const Weight* weight = place.rule ? &weight_at(model, place) : nullptr;
    if (weight == nullptr || !is_quantised(*weight)) {
      if (weight != nullptr || stored == nullptr || follows(model, *stored)) add(tensor, i);
    } else if (place.part == Part::values) {
      add(weights.dequantised(tensor, place, *weight), i);
    }
  }
}

}  // namespace moetrim::export_detail
