// From router logits to routed experts and gate weights.
#pragma once

#include <cstdint>
#include <vector>

#include "forward/attention.h"

namespace moetrim {

/// How a model's router chooses; see RouterTraits.
struct RouterRule {
  int experts = 0, experts_per_token = 0;
  RouterScore score = RouterScore::softmax;
  bool normalise = false;        ///< gates are divided by their sum
  bool round_gates = false;      ///< gates are rounded to bf16 before use
  double scale = 1.0;            ///< multiplies the gates at the end
  GroupRule group_rule = GroupRule::none;
  int groups = 1, groups_chosen = 1;
  double jitter = 0.01;          ///< sparsemixer
  const float* selection_bias = nullptr;  ///< [E] added to probabilities for selection alone; null: none
  const float* output_scale = nullptr;    ///< [E] multiplies the gates of an expert; null: none
};

/// Routes one token, in `Real` arithmetic: float or double. The K best experts that `kept` allows win, ties go to the lower id.
/// @param logits         [E] raw
/// @param kept           null: all; else which experts may be chosen, at least K of them
/// @param probabilities  [E] out, 0 for experts that are not kept
/// @param ids, gates     [K] out, best first
template <class Real>
void route_token(const RouterRule& rule, const Real* logits, const std::vector<bool>* kept, Real* probabilities,
                 std::int32_t* ids, Real* gates);

/// The rule of a layer. @param regrouped  forget the groups, as a plan with `regroup` does.
RouterRule router_rule(const TileContext& context, const LayerWeights& weights, bool regrouped);

/// Empties a record and gives it room for that many tokens.
void prepare_record(const Model& model, int layer, std::int64_t tokens, RoutedLayer& routed);

/// Routes the tokens of a tile: logits, probabilities, ids and gates of tokens [first, first + n).
/// @param normed    [n, H] tile
/// @param for_each  routing is work for the CPU even when the tile is on a device: how to share it out
void route_tile(const TileContext& context, const LayerWeights& weights, const at::Tensor& normed, std::int64_t first,
                const MaskOfToken& mask, RoutedLayer& routed, TileScratch& scratch, const ForEach& for_each = in_turn);

}  // namespace moetrim
