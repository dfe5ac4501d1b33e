// A tile of tokens through everything in a layer but its routed experts, as operators that autograd can follow.
#pragma once

#include <span>

#include "forward/attention.h"

namespace moetrim {

/// What a tile's gradients flow through. Values are wide and not rounded to what a bf16 run stores: they are the point that a
/// layer is linearised at, not its result.
struct TapedTile {
  at::Tensor hidden;    // [n, H] what gradients are asked for
  at::Tensor residual;  // [n, H] after attention
  at::Tensor normed;    // [n, H] what the experts read
  at::Tensor gates;     // [n, K] what multiplies the routed experts' outputs, or inputs; undefined in a dense layer
  at::Tensor mlp;       // [n, H] of the dense MLP or the shared experts; undefined without
};

/// @param parts   whole sequences; their lengths sum to n.
/// @param hidden  [n, H] before the layer
/// @param routed  [n, K] i64: constants, as everywhere in autograd; undefined in a dense layer
TapedTile tape_tile(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
                    std::span<const SequencePart> parts, const at::Tensor& hidden, const at::Tensor& routed);

}  // namespace moetrim
