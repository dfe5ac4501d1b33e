// Merged experts: the weighted mean of a group's members, their atomic experts in the order of the expert they merge into.
// The router's rows are a matter of slots.
// Source: M-SMoE, arXiv 2310.01334, and the methods after it (docs/merging.md).

#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/statistics.h"
#include "rewrite/operations.h"

namespace moetrim::operations {

namespace {

class Merge : public Editor {
 public:
  explicit Merge(const Plan& plan) {
    for (const PlanLayer& layer : plan.layers) {
      for (const MergeGroup& group : layer.merge) {
        const auto aligned = std::make_shared<const AlignedGroup>(AlignedGroup{layer.layer, group, plan.align});
        for (const int member : group.members) groups_[{layer.layer, member}] = aligned;
      }
    }
  }

  void edit(const PlanLayer& layer, const SlabPlace& place, SlabRecipe& recipe) const override {
    if (where_of(place.role) != Where::experts) return;
    const auto found = groups_.find({layer.layer, place.expert});
    if (found == groups_.end()) return;
    recipe.group = found->second;
    recipe.parts.clear();
    const MergeGroup& group = found->second->group;
    for (std::size_t i = 0; i < group.members.size(); ++i) recipe.parts.push_back({group.members[i], group.weights[i]});
  }

 private:
  std::map<std::pair<int, int>, std::shared_ptr<const AlignedGroup>> groups_;  // by layer and member
};

void check_activations(const Plan& plan, const RewriteSources& sources) {
  if (sources.statistics.empty()) {
    throw InvalidInput("the plan aligns merged experts by their activations, which are in the statistics it was made from; "
                       "name their folder with --statistics");
  }
  const StatisticsManifest manifest = read_statistics_manifest(sources.statistics);
  if (manifest.checkpoint_fingerprint != plan.checkpoint_fingerprint) {
    throw InvalidInput(fmt::format("{}: statistics of checkpoint {}, the plan is of {}", sources.statistics.string(),
                                   manifest.checkpoint_fingerprint, plan.checkpoint_fingerprint));
  }
  if (manifest.vectors && manifest.vectors->activation_samples > 0) return;
  throw InvalidInput(fmt::format("{}: holds no sampled activations, by which the plan aligns merged experts; calibrate with --statistics "
                                 "all-experts, or make the plan with --merge-align weights", sources.statistics.string()));
}

std::unique_ptr<Editor> make(const Model&, const Plan& plan, const RewriteSources& sources) {
  if (!merges(plan)) return nullptr;
  if (plan.align == Alignment::activations) check_activations(plan, sources);
  return std::make_unique<Merge>(plan);
}

}  // namespace

const Operation merge{.name = "merge", .make = make};

}  // namespace moetrim::operations
