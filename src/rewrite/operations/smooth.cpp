// Smoothing: the norm before an MoE block is divided by a factor per hidden channel, and everything that reads its output is
// multiplied by it. Source: EAQuant (arXiv 2506.13329).

#include <map>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "rewrite/operations.h"

namespace moetrim::operations {

namespace {

using Factors = std::shared_ptr<const std::vector<float>>;

bool is_norm(Role role) { return role == Role::mlp_norm || role == Role::mlp_norm_bias; }

/// What multiplies the normed hidden states, along H.
bool reads_the_norm(Role role) {
  switch (role) {
    case Role::router:
    case Role::shared_gate: case Role::shared_up: case Role::shared_router:
    case Role::expert_gate: case Role::expert_up: case Role::fused_gate_up: return true;
    default: return false;
  }
}

class Smooth : public Editor {
 public:
  Smooth(const Model& model, const Plan& plan) : one_plus_(model.family->norm == NormKind::rms_one_plus) {
    for (const PlanLayer& layer : plan.layers) {
      if (!layer.smooth.empty()) factors_[layer.layer] = std::make_shared<const std::vector<float>>(layer.smooth);
    }
  }

  void edit(const PlanLayer& layer, const SlabPlace& place, SlabRecipe& recipe) const override {
    if (layer.smooth.empty() || !(is_norm(place.role) || reads_the_norm(place.role))) return;
    recipe.along_hidden = factors_.at(layer.layer);
    if (!is_norm(place.role)) return;
    recipe.divides = true;
    if (place.role == Role::mlp_norm && one_plus_) recipe.norm_offset = 1;
  }

 private:
  bool one_plus_;                    // norms store weight - 1
  std::map<int, Factors> factors_;   // by layer
};

/// Scales of a quantised weight serve many channels, so that a factor per channel would have to change its codes.
void check_weight(const Weight& weight) {
  if (!weight || !weight.packed()) return;
  throw InvalidInput(fmt::format("tensor {} is quantised: smoothing is for weights that are still to be quantised; start from "
                                 "the bf16 checkpoint", weight.values()->name));
}

void check_layer(const Model& model, int layer) {
  const LayerTensors& tensors = model.layer[static_cast<std::size_t>(layer)];
  if (!tensors[Role::mlp_norm]) {
    throw InvalidInput(fmt::format("layer {}: {} has no norm before its experts that could take the factors", layer,
                                   model.family->name));
  }
  for (std::size_t role = 0; role < kRoleCount; ++role) {
    if (reads_the_norm(static_cast<Role>(role))) check_weight(tensors[static_cast<Role>(role)]);
  }
  for (const auto& expert : tensors.experts) {
    check_weight(expert[0]);
    check_weight(expert[1]);
  }
}

std::unique_ptr<Editor> make(const Model& model, const Plan& plan, const RewriteSources&) {
  bool any = false;
  for (const PlanLayer& layer : plan.layers) {
    if (layer.smooth.empty()) continue;
    check_layer(model, layer.layer);
    any = true;
  }
  return any ? std::make_unique<Smooth>(model, plan) : nullptr;
}

}  // namespace

const Operation smooth{.name = "smooth", .make = make};

}  // namespace moetrim::operations
