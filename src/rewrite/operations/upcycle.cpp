// Noise on copies: an expert's first slot has its weights, the others have them with Gaussian noise, so that training can
// tell them apart. Source: Expert Upcycling (arXiv 2604.19835). The repetition itself is a matter of slots.

#include <algorithm>

#include "moetrim/split_mix.h"
#include "rewrite/operations.h"

namespace moetrim::operations {

namespace {

class Upcycle : public Editor {
 public:
  explicit Upcycle(const Plan& plan) : noise_(plan.noise), seed_(plan.noise_seed) {}

  void edit(const PlanLayer& layer, const SlabPlace& place, SlabRecipe& recipe) const override {
    switch (place.role) {
      case Role::expert_gate: case Role::expert_up: case Role::expert_down:
      case Role::fused_gate_up: case Role::fused_down: break;
      default: return;
    }
    const auto slot = layer.keep.begin() + place.slot;
    if (std::find(layer.keep.begin(), slot, place.expert) == slot) return;
    recipe.noise = noise_;
    recipe.noise_seed = seed_of(layer.layer, place);
  }

 private:
  /// Another one for every slab, the same in every run.
  std::uint64_t seed_of(int layer, const SlabPlace& place) const {
    std::uint64_t state = seed_;
    for (const int part : {layer, place.slot, static_cast<int>(place.role)}) {
      state = split_mix(state + static_cast<std::uint64_t>(part));
    }
    return state;
  }

  double noise_;
  std::uint64_t seed_;
};

std::unique_ptr<Editor> make(const Model&, const Plan& plan, const RewriteSources&) {
  return plan.noise > 0 ? std::make_unique<Upcycle>(plan) : nullptr;
}

}  // namespace

const Operation upcycle{.name = "upcycle", .make = make};

}  // namespace moetrim::operations
