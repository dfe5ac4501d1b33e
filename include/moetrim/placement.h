// Which device holds which experts: the slots of every layer in an order that keeps a token's experts together.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/plan.h"
#include "moetrim/statistics.h"

namespace moetrim {

enum class PlacementObjective {
  traffic,  ///< pairs of a token's experts on different devices (ExFlow, arXiv:2401.08383, for top-k)
  load,     ///< the fullest device of every layer
  both,     ///< mean cost of a pair plus mean excess of the fullest device (MoETuner, arXiv:2502.06643)
};
/// "traffic", "load", "both".
std::string_view placement_objective_name(PlacementObjective objective);
/// @throws UsageError
PlacementObjective placement_objective_from_name(std::string_view name);

struct PlacementRequest {
  int devices = 0;        ///< G; device d holds slots [d R / G, (d + 1) R / G) of a layer's R
  int nodes = 1;          ///< devices are dealt to nodes in the same way
  PlacementObjective objective = PlacementObjective::both;
  std::uint64_t seed = 0; ///< of the random starts
  std::vector<std::string> tasks = {};  ///< whose tokens count; empty: all
};

/// What a placement is predicted to cost on the calibrated tokens. A pair is two experts of one token: one in a layer and
/// one in the next MoE layer (of K x K), or two in the same layer (of K (K - 1) / 2).
struct PlacementCost {
  double transitions = 0;          ///< pairs of neighbouring layers
  double transitions_crossing = 0; ///< those of them on two devices, on two nodes included
  double transitions_between_nodes = 0;
  double coactivations = 0;        ///< pairs of one layer
  double coactivations_crossing = 0;
  double coactivations_between_nodes = 0;
  double mean_load = 1;            ///< routed tokens of a layer's fullest device over those of a mean one, mean over layers
  double worst_load = 1;           ///< the largest
  int worst_layer = 0;             ///< absolute id

  /// A pair costs 1 on two devices and 2 on two nodes: mean over all pairs, in [0, 2].
  double mean_cost() const;
};
nlohmann::ordered_json placement_cost_to_json(const PlacementCost& cost);

struct PlacedPlan {
  Plan plan;
  PlacementCost before;   ///< of the slots as they were
  PlacementCost after;    ///< never worse in the objective
};

/// Permutes the slots of every layer of `base`. The checkpoint computes the same function: router rows, selection biases and
/// weights move together. Groups of the router stay whole: they change places, and experts change places within them.
///
/// Every layer in turn is assigned to the one before it (optimal_assignment), then experts of one layer trade places while
/// that helps, layer after layer until nothing does; from the given order and several others, of which the best result
/// stays. The optimum is not promised. Deterministic for a seed.
/// @param base  of the same checkpoint, without merged or repeated experts. Costs are those of the kept experts' tokens in
///              the statistics: where the plan drops experts, their tokens will go elsewhere.
/// @throws UsageError when devices or nodes do not divide; InvalidInput when the kept experts, or the router's groups, do
///         not divide into the devices, or statistics and plan are not of one checkpoint.
PlacedPlan place_experts(const Statistics& statistics, const PlacementRequest& request, Plan base);

}  // namespace moetrim
