// Tensors of which an operation changes values.

#include "rewrite/edited_tensors.h"

#include <algorithm>

#include <fmt/format.h>

#include "family/name_pattern.h"
#include "moetrim/error.h"
#include "rewrite/slim_tensors.h"

namespace moetrim {

namespace {

bool has_expert_axis(const TensorRule& rule) { return std::find(rule.axes.begin(), rule.axes.end(), Axis::E) != rule.axes.end(); }

}  // namespace

EditedTensors::EditedTensors(const Model& model, const Plan& plan, const Renumbering& numbers, const RewriteSources& sources)
    : model_(model), numbers_(numbers), operations_(model, plan, sources),
      layers_(static_cast<std::size_t>(model.layers + model.mtp_layers)) {
  for (const PlanLayer& layer : plan.layers) {
    if (numbers.covers(layer.layer)) layers_[static_cast<std::size_t>(layer.layer)] = &layer;
  }
}

/// Of the tensor's slabs, in the order of the new checkpoint. @param slot  of a tensor of one expert
std::vector<SlabRecipe> EditedTensors::recipes(const PlanLayer& layer, const TensorPlace& place, int slot) const {
  const Role role = place.rule->role;
  std::vector<SlabRecipe> out;
  const auto add = [&](int number, int expert) {
    out.push_back(operations_.recipe(layer, {.role = role, .slot = number, .expert = expert}));
  };
  if (slot >= 0 || !has_expert_axis(*place.rule)) {
    add(slot, place.expert);
    return out;
  }
  int number = 0;
  const auto& ids = where_of(role) == Where::experts ? numbers_.keep(place.layer) : numbers_.router_rows(place.layer);
  for (const int expert : ids) add(number++, expert);
  return out;
}

bool EditedTensors::append(const Tensor& tensor, const TensorPlace& place, std::vector<OutputTensor>& out) const {
  if (operations_.empty() || place.rule == nullptr || place.layer < 0) return false;
  const PlanLayer* layer = layers_[static_cast<std::size_t>(place.layer)];
  if (layer == nullptr) return false;
  const std::vector<int> whole = {-1};
  const auto& slots = place.expert < 0 ? whole : numbers_.slots_of(place.layer, place.expert);
  std::vector<std::vector<SlabRecipe>> by_slot;
  bool edited = false;
  for (const int slot : slots) {
    by_slot.push_back(recipes(*layer, place, slot));
    edited = edited || !std::all_of(by_slot.back().begin(), by_slot.back().end(), [](const SlabRecipe& r) { return r.untouched(); });
  }
  if (!edited) return false;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    OutputTensor made{tensor, {{&tensor, 0, tensor.size}}};
    if (place.expert >= 0) made.spec.name = with_expert(place.rule->name, tensor.name, slots[i]);
    else if (has_expert_axis(*place.rule)) {
      const auto& axes = place.rule->axes;
      const auto axis = static_cast<std::size_t>(std::find(axes.begin(), axes.end(), Axis::E) - axes.begin());
      made.spec.shape[axis] = static_cast<std::int64_t>(by_slot[i].size());
    }
    auto computation = std::make_shared<Computation>();
    computation->result = Computation::Result::as_stored;
    computation->weight = &weight_at(model_, place);
    computation->slabs = std::move(by_slot[i]);
    made.computation = std::move(computation);
    out.push_back(std::move(made));
  }
  return true;
}

}  // namespace moetrim
