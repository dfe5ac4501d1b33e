// Attention and the dense MLP over one tile of tokens.
#pragma once

#include <span>

#include <ATen/core/Tensor.h>

#include "forward/kernels.h"
#include "forward/layer_weights.h"
#include "forward/numerics.h"
#include "forward/rotary_table.h"
#include "moetrim/forward.h"

namespace moetrim {

/// Memory of one worker that a tile's intermediate values use. Grows to the largest tile.
struct TileScratch {
  at::Tensor normed, qkv, attended, projected, gate_up, activated, mlp_out, router_logits, gathered, shared;
};

/// What is the same for all tiles of a run.
struct TileContext {
  const Model& model;
  const Numerics& numerics;
  const at::Device& device;
  const RotaryTable& rotary;
};

/// hidden += attention(norm(hidden)) for sequences that lie one after another in `hidden` [n, H] stored.
/// @param lengths  tokens of each sequence; they sum to n.
void attend(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
            std::span<const std::int64_t> lengths, at::Tensor& hidden, TileScratch& scratch);

/// down(silu(gate(x)) * up(x)) for x [n, H] tile; the result is a product, not yet rounded.
at::Tensor gated_mlp(const TileContext& context, const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& down,
                     TileScratch& scratch);


/// The heads of queries, keys and values in a row.
kernels::HeadLayout head_layout(const Model& model, const LayerWeights& weights);

/// softmax(q kT / sqrt(D)) v of one sequence, causal, with a sliding window when window > 0.
/// @param queries  [L, heads, D], @param keys, values  [S, kv heads, D], S >= L; query i sees keys up to S - L + i.
/// @return [L, heads * D]
at::Tensor attention_of(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, std::int64_t window);

}  // namespace moetrim
