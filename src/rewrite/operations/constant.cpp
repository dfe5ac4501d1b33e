// Experts that put out their mean output whatever the token: weights of zeros, and the mean in the bias of the down
// projection. Source: MoNE (arXiv 2507.00390), whose novices need code of their own where experts have no such bias.

#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/vectors.h"
#include "rewrite/operations.h"

namespace moetrim::operations {

namespace {

using Mean = std::vector<float>;  // [H]

class Constant : public Editor {
 public:
  /// One layer's vectors at a time; of each only the means stay.
  Constant(const Plan& plan, const std::filesystem::path& folder) {
    const StatisticsManifest manifest = read_statistics_manifest(folder);
    if (manifest.checkpoint_fingerprint != plan.checkpoint_fingerprint) {
      throw InvalidInput(fmt::format("{}: statistics of checkpoint {}, the plan is of {}", folder.string(),
                                     manifest.checkpoint_fingerprint, plan.checkpoint_fingerprint));
    }
    for (const PlanLayer& layer : plan.layers) {
      if (layer.constant.empty()) continue;
      const LayerStatistics counts = read_layer_statistics(folder / layer_file_name(layer.layer));
      const ExpertVectors vectors = read_vectors(folder, manifest, layer.layer);
      for (const int expert : layer.constant) means_[{layer.layer, expert}] = mean_output(counts, vectors, expert);
    }
  }

  void edit(const PlanLayer& layer, const SlabPlace& place, SlabRecipe& recipe) const override {
    if (where_of(place.role) != Where::experts) return;
    const auto found = means_.find({layer.layer, place.expert});
    if (found == means_.end()) return;
    recipe.parts.clear();
    if (place.role != Role::fused_down_bias) return;
    Mean values = found->second;
    for (float& value : values) value = static_cast<float>(value * recipe.factor);
    recipe.values = std::make_shared<const Mean>(std::move(values));
  }

 private:
  /// Over the counted tokens of all tasks that were routed to the expert. Zeros when there were none.
  static Mean mean_output(const LayerStatistics& counts, const ExpertVectors& vectors, int expert) {
    const auto hidden = static_cast<std::size_t>(vectors.hidden);
    std::vector<double> sum(hidden);
    double tokens = 0;
    for (int task = 0; task < vectors.tasks; ++task) {
      tokens += counts.task_total(Stat::routed_count, task)[static_cast<std::size_t>(expert)];
      const auto row = static_cast<std::size_t>(task * vectors.experts + expert) * hidden;
      for (std::size_t c = 0; c < hidden; ++c) sum[c] += vectors.routed_output[row + c];
    }
    Mean mean;
    for (const double value : sum) mean.push_back(static_cast<float>(value / std::max(tokens, 1.0)));
    return mean;
  }

  std::map<std::pair<int, int>, Mean> means_;  // by layer and expert
};

std::unique_ptr<Editor> make(const Model& model, const Plan& plan, const RewriteSources& sources) {
  for (const PlanLayer& layer : plan.layers) {
    if (layer.constant.empty()) continue;
    if (!model.layer[static_cast<std::size_t>(layer.layer)][Role::fused_down_bias]) {
      throw InvalidInput(fmt::format("the plan replaces experts of layer {} by constants, but experts of {} have no bias in "
                                     "their down projection that could hold one; drop the experts instead", layer.layer,
                                     model.family->name));
    }
    if (sources.statistics.empty()) {
      throw InvalidInput("the plan replaces experts by their mean outputs, which are in the statistics it was made from; "
                         "name their folder with --statistics");
    }
    return std::make_unique<Constant>(plan, sources.statistics);
  }
  return nullptr;
}

}  // namespace

const Operation constant{.name = "constant", .make = make};

}  // namespace moetrim::operations
