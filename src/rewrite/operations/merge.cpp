// Merged experts: the weighted mean of a group's members, their atomic experts in the order of the expert they merge into.
// The router's rows are a matter of slots.
// Source: M-SMoE, arXiv 2310.01334, and the methods after it (docs/merging.md).

#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
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

std::unique_ptr<Editor> make(const Model&, const Plan& plan, const RewriteSources& sources) {
  if (!merges(plan)) return nullptr;
  if (plan.align == Alignment::activations && sources.statistics.empty()) {
    throw InvalidInput("the plan aligns merged experts by their activations, which are in the statistics it was made from; "
                       "name their folder with --statistics");
  }
  return std::make_unique<Merge>(plan);
}

}  // namespace

const Operation merge{.name = "merge", .make = make};

}  // namespace moetrim::operations
