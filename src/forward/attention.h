// Attention, in all its kinds, and the dense MLP over one tile of tokens.
#pragma once

#include <functional>
#include <span>

#include <ATen/core/Tensor.h>

#include "forward/attention_core.h"
#include "forward/kernels.h"
#include "forward/layer_weights.h"
#include "forward/numerics.h"
#include "forward/rotary_table.h"
#include "moetrim/forward.h"

namespace moetrim {

/// Memory of one worker that a tile's intermediate values use. Grows to the largest tile.
struct TileScratch {
  at::Tensor normed, qkv, attended, projected, gate_up, activated, mlp_out, router_logits, gathered, shared;
  at::Tensor latent_query, latent_key_value, query, key_value;
};

/// What is the same for all tiles of a run.
struct TileContext {
  const Model& model;
  const Numerics& numerics;
  const at::Device& device;
  const RotaryTable& rotary;
};

/// What the earlier tokens of a sequence left behind in one layer.
struct LayerCache {
  at::Tensor keys, values;        // [capacity, key heads, D], [capacity, key heads, D of values]
  at::Tensor convolution, state;  // gated delta net: the last kernel - 1 inputs; [heads, D_k, D_v]; undefined at the start
};

/// Consecutive tokens of one sequence.
struct SequencePart {
  std::int64_t length = 0;
  std::int64_t past = 0;        ///< tokens before them, in the cache
  LayerCache* cache = nullptr;  ///< null: the sequence begins and ends here
};

/// Calls body(i) for i in [0, count), in any order or at once.
using ForEach = std::function<void(std::int64_t count, const std::function<void(std::int64_t)>& body)>;
/// One after another.
void in_turn(std::int64_t count, const std::function<void(std::int64_t)>& body);

/// hidden += attention(norm(hidden)) for sequences that lie one after another in `hidden` [n, H] stored.
/// @param parts  their lengths sum to n.
void attend(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
            std::span<const SequencePart> parts, at::Tensor& hidden, TileScratch& scratch, const ForEach& for_each = in_turn);

/// The kinds of attention: normed [n, H] tile to what the output projection reads, [n, width] tile, rounded.
at::Tensor grouped_query_attention(const TileContext& context, const LayerTensors& layer, const AttentionWeights& weights,
                                   std::span<const SequencePart> parts, const at::Tensor& normed, TileScratch& scratch,
                                   const ForEach& for_each);
at::Tensor latent_attention(const TileContext& context, const LatentWeights& weights, std::span<const SequencePart> parts,
                            const at::Tensor& normed, TileScratch& scratch, const ForEach& for_each);
at::Tensor delta_net(const TileContext& context, const DeltaWeights& weights, std::span<const SequencePart> parts,
                     const at::Tensor& normed, TileScratch& scratch, const ForEach& for_each);

/// Attention of new tokens to themselves and to what the cache holds; puts their keys and values there.
at::Tensor attend_with_cache(const SequencePart& part, const at::Tensor& queries, const at::Tensor& keys,
                             const at::Tensor& values, const AttentionRule& rule);

/// down(act(gate(x)) * up(x)) for x [n, H] tile; the result is a product, not yet rounded. Biases may be undefined.
struct GatedMlp {
  const at::Tensor& gate_up;
  const at::Tensor& down;
  at::Tensor gate_up_bias = {}, down_bias = {};
};
at::Tensor gated_mlp(const TileContext& context, const at::Tensor& x, const GatedMlp& mlp, TileScratch& scratch);

}  // namespace moetrim
