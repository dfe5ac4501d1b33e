// Which slabs of the new checkpoint an operation changes, and how.

#include "rewrite/edited_slabs.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "rewrite/slim_tensors.h"

namespace moetrim {

namespace {

bool is_plain(Dtype dtype) { return dtype == Dtype::bf16 || dtype == Dtype::f16 || dtype == Dtype::f32; }

void check_values(const Model& model, const Tensor& tensor, const TensorPlace& place) {
  const Weight& weight = weight_at(model, place);
  const bool is_matrix = weight.rule->axes.size() == 2 || weight.fused();
  if (!weight.packed() || !is_matrix) {
    if (is_plain(tensor.dtype)) return;
    throw InvalidInput(fmt::format("tensor {}: the plan changes its values, which is done in BF16, F16 and F32; it is {}; convert "
                                   "the checkpoint first", tensor.name, dtype_name(tensor.dtype)));
  }
  const StoredMatrix matrix = stored_matrix(model, weight);
  const bool known_part = place.part == Part::values || place.part == Part::scale;
  if (known_part && can_be_quantised_again(matrix)) return;
  throw InvalidInput(fmt::format("tensor {}: the plan changes the values of this weight, and {} cannot be computed and stored again; "
                                 "write the checkpoint in bf16 first (moetrim rewrite --also-dtype bf16, with a plan that keeps all "
                                 "experts), and make the plan for that", tensor.name,
                                 known_part ? fmt::format("{} codes", packing_name(matrix.packing.kind))
                                            : fmt::format("its {}", part_name(place.part))));
}

}  // namespace

bool can_be_quantised_again(const StoredMatrix& matrix) {
  const bool in_blocks = matrix.packing.kind == PackingKind::fp8 && matrix.packing.scale_rows > 1;
  return in_blocks && matrix.parts[Part::values]->dtype == Dtype::f8_e4m3;
}

EditedSlabs::EditedSlabs(const Model& model, const Plan& plan, const Renumbering& numbers, const RewriteSources& sources)
    : model_(model), operations_(model, plan, sources), layers_(static_cast<std::size_t>(model.layers + model.mtp_layers)) {
  for (const PlanLayer& layer : plan.layers) {
    if (numbers.covers(layer.layer)) layers_[static_cast<std::size_t>(layer.layer)] = &layer;
  }
}

std::shared_ptr<const SlabRecipe> EditedSlabs::recipe(const Tensor& tensor, const TensorPlace& place, int slot, int expert) const {
  if (operations_.empty() || place.rule == nullptr || place.layer < 0) return nullptr;
  const PlanLayer* layer = layers_[static_cast<std::size_t>(place.layer)];
  if (layer == nullptr) return nullptr;
  SlabRecipe made = operations_.recipe(*layer, {.role = place.rule->role, .slot = slot, .expert = expert});
  if (made.untouched()) return nullptr;
  check_values(model_, tensor, place);
  return std::make_shared<const SlabRecipe>(std::move(made));
}

void EditedSlabs::requantise(OutputTensor& tensor, const TensorPlace& place, const std::vector<int>& experts) const {
  const auto has_recipe = [](const Piece& piece) { return piece.recipe != nullptr; };
  const bool edited = std::any_of(tensor.pieces.begin(), tensor.pieces.end(), has_recipe);
  if (!edited || tensor.computation) return;
  const Weight& weight = weight_at(model_, place);
  if (!weight.packed() || !(weight.rule->axes.size() == 2 || weight.fused())) return;
  auto computation = std::make_shared<Computation>();
  computation->result = place.part == Part::values ? Computation::Result::fp8 : Computation::Result::fp8_scale;
  computation->weight = &weight;
  if (weight.fused()) computation->experts = experts;
  tensor.computation = std::move(computation);
}

}  // namespace moetrim
