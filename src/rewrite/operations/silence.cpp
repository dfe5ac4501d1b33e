// Experts that stay in their places and are never chosen: their selection bias becomes very negative.

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "rewrite/operations.h"

namespace moetrim::operations {

namespace {

/// Below every score by far, and finite, so that sums of two (groups by their two best) stay finite too.
constexpr float kNever = -1e30F;
constexpr float kNeverInF16 = -3e4F;

class Silence : public Editor {
 public:
  explicit Silence(std::map<int, float> biases) : biases_(std::move(biases)) {}

  void edit(const PlanLayer& layer, const SlabPlace& place, SlabRecipe& recipe) const override {
    if (place.role != Role::selection_bias) return;
    if (!std::binary_search(layer.silence.begin(), layer.silence.end(), place.expert)) return;
    recipe.values = std::make_shared<const std::vector<float>>(1, biases_.at(layer.layer));
  }

 private:
  std::map<int, float> biases_;   // by layer
};

/// A token must find as many experts as it needs among the others, in whatever groups it may choose.
void check_left(const Model& model, const PlanLayer& layer, int experts_per_token, bool regroup) {
  const RouterGroups groups = regroup ? RouterGroups{} : router_groups(model);
  const int least = least_per_group(groups, experts_per_token);
  const auto size = layer.keep.size() / static_cast<std::size_t>(groups.count);
  for (std::size_t begin = 0; begin < layer.keep.size(); begin += size) {
    const auto first = layer.keep.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto left = std::count_if(first, first + static_cast<std::ptrdiff_t>(size), [&](int expert) {
      return !std::binary_search(layer.silence.begin(), layer.silence.end(), expert);
    });
    if (left >= least) continue;
    throw InvalidInput(fmt::format("layer {}: silencing leaves {} experts{}, and a token may need {}; silence fewer",
                                   layer.layer, left, groups.count > 1 ? " of a group of the router" : "", least));
  }
}

std::unique_ptr<Editor> make(const Model& model, const Plan& plan, const RewriteSources&) {
  std::map<int, float> biases;
  for (const PlanLayer& layer : plan.layers) {
    if (layer.silence.empty()) continue;
    const Tensor* bias = model.layer[static_cast<std::size_t>(layer.layer)][Role::selection_bias].values();
    if (bias == nullptr) {
      throw InvalidInput(fmt::format("the plan silences experts of layer {}, but its router ({}) has no selection bias that "
                                     "could keep them from being chosen; drop the experts instead", layer.layer,
                                     model.family->name));
    }
    const int chosen = plan.experts_per_token_after > 0 ? plan.experts_per_token_after : plan.experts_per_token;
    check_left(model, layer, chosen, plan.regroup);
    biases[layer.layer] = bias->dtype == Dtype::f16 ? kNeverInF16 : kNever;
  }
  return biases.empty() ? nullptr : std::make_unique<Silence>(std::move(biases));
}

}  // namespace

const Operation silence{.name = "silence", .make = make};

}  // namespace moetrim::operations
