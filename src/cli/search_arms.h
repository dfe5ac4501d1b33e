// The candidates of a search: plans in lines, by size.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/search_recipe.h"
#include "moetrim/search.h"

namespace moetrim::cli {

/// One size of an arm: the options of its plan, or how many experts every layer keeps.
struct SearchSize {
  PlanFlags flags;
  std::vector<int> by_layer = {};  ///< empty: as `flags` say; of all MoE layers of the statistics
  std::uint64_t bytes = 0;     ///< of the new checkpoint's tensors; known once it was planned
};

struct PlannedArm {
  std::string name;
  bool alone = false;          ///< its plans change values
  std::vector<SearchSize> sizes = {};
};

/// Sizes of all arms but those by layer, whose allocations follow from measurements; bytes are not known yet.
/// @throws InvalidInput, UsageError for sizes that are not legal.
std::vector<PlannedArm> uniform_arms(const SearchFlags& search, const RouterLimits& limits);

/// Methods that choose whole experts: those that counts by layer are for.
std::vector<std::string> expert_methods(const SearchFlags& search);
/// The counts of a layer at which curves are measured: those asked for, or six over all that are legal; without that of all.
std::vector<int> curve_counts(const SearchFlags& search, const RouterLimits& limits);
/// The whole numbers of experts that are tried.
std::vector<int> tried_counts(const SearchFlags& search, const RouterLimits& limits);

/// Turns sizes into plans.
class Planner {
 public:
  /// @param folder  of the statistics, for what is read layer by layer
  Planner(const Model& model, const Statistics& statistics, std::filesystem::path folder, std::string mtp);

  Plan plan(const SearchSize& size) const;
  /// Bytes of the new checkpoint's tensors. @throws InvalidInput when it cannot be written
  std::uint64_t bytes(const SearchSize& size);
  /// The arm of a method whose layers keep different numbers, as many in all as with each of `tried`.
  PlannedArm by_layer_arm(const SearchFlags& search, const std::string& method, const std::vector<LayerCurve>& curves,
                          const std::vector<int>& tried) const;
  /// The plan sizes that a layer's curve is measured with: as `curve.counts`, without that of all experts.
  std::vector<SearchSize> curve_sizes(const SearchFlags& search, const std::string& method, const LayerCurve& curve) const;
  /// Layers that evaluation runs.
  std::vector<int> evaluated_layers() const;
  /// Sorts the sizes by bytes and leaves out those that are as large as another. Refuses what cannot be written.
  void settle(PlannedArm& arm);

 private:
  const Scores& scores(const PlanFlags& flags) const;

  const Model& model_;
  const Statistics& statistics_;
  std::filesystem::path folder_;
  std::string mtp_;
  mutable std::map<std::string, Scores> scores_;   ///< of methods over experts
  std::map<std::vector<int>, std::uint64_t> bytes_;  ///< by the layers' counts, of plans that only drop experts
};

}  // namespace moetrim::cli
