// From router logits to routed experts and gate weights.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "forward/attention.h"

namespace moetrim {

/// How a family's router chooses; see Family.
struct RouterRule {
  int experts = 0, experts_per_token = 0;
  bool normalise = false;     ///< gates are divided by their sum
  bool round_gates = false;   ///< gates are rounded to bf16 before use
};

/// Routes one token. Softmax in fp32 over the experts that `kept` allows, the K most probable win, ties to the lower id.
/// @param logits         [E] raw
/// @param kept           null: all; else which experts may be chosen, at least K of them
/// @param probabilities  [E] out, 0 for experts that are not kept
/// @param ids, gates     [K] out, most probable first
void route_token(const RouterRule& rule, const float* logits, const std::vector<bool>* kept, float* probabilities,
                 std::int32_t* ids, float* gates);

/// Empties a record and gives it room for that many tokens.
void prepare_record(const Model& model, int layer, std::int64_t tokens, RoutedLayer& routed);

/// Experts that a token may be routed to; null: all.
using KeptExperts = std::function<const std::vector<bool>*(std::int64_t token)>;

/// Routes the tokens of a tile: logits, probabilities, ids and gates of tokens [first, first + n).
/// @param router  [E, H] tile, @param normed  [n, H] tile
void route_tile(const TileContext& context, const at::Tensor& router, const at::Tensor& normed, std::int64_t first,
                const KeptExperts& kept, RoutedLayer& routed, TileScratch& scratch);

}  // namespace moetrim
