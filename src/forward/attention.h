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

class TileInputs;

/// Memory of one worker that a tile's intermediate values use. Grows to the largest tile.
struct TileScratch {
  at::Tensor normed, qkv, attended, projected, gate_up, activated, mlp_out, router_logits, gathered, shared;
  at::Tensor latent_query, latent_key_value, query, key_value;
  at::Tensor gradient, of_activated;
  TileInputs* inputs = nullptr;   ///< notes what the tile's linear layers read; null: nobody asks
};

/// What is the same for all tiles of a run.
struct TileContext {
  const Model& model;
  const Numerics& numerics;
  const at::Device& device;
  const RotaryTable& rotary;
};

/// What restricts a token: its sequence's mask in this layer; null: nothing.
using MaskOfToken = std::function<const LayerMask*(std::int64_t token)>;

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

/// The same, then the norm before the MLP: [n, H] tile.
at::Tensor attend_and_norm(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
                           std::span<const SequencePart> parts, at::Tensor& hidden, TileScratch& scratch,
                           const ForEach& for_each = in_turn);

/// The kinds of attention: normed [n, H] tile to what the output projection reads, [n, width] tile, rounded.
at::Tensor grouped_query_attention(const TileContext& context, const LayerTensors& layer, const AttentionWeights& weights,
                                   std::span<const SequencePart> parts, const at::Tensor& normed, TileScratch& scratch,
                                   const ForEach& for_each);
at::Tensor latent_attention(const TileContext& context, const LatentWeights& weights, std::span<const SequencePart> parts,
                            const at::Tensor& normed, TileScratch& scratch, const ForEach& for_each);
at::Tensor delta_net(const TileContext& context, const DeltaWeights& weights, std::span<const SequencePart> parts,
                     const at::Tensor& normed, TileScratch& scratch, const ForEach& for_each);

/// The gated delta rule over one sequence: the outputs and the state left behind. Tensors as for kernels::delta_rule.
using DeltaRule = std::pair<at::Tensor, at::Tensor> (*)(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                                                        const at::Tensor& decay, const at::Tensor& beta, at::Tensor state);
/// A gated delta net over one sequence: rows of the input projection, [L, delta_qkvz + delta_heads2] wide, to [L, delta_values].
at::Tensor delta_sequence(const TileContext& context, const DeltaWeights& weights, const at::Tensor& rows, LayerCache* cache,
                          DeltaRule rule);

/// How a row of queries, keys and values is cut, and what is done to it in this layer.
kernels::HeadLayout head_layout(const Model& model, const LayerTensors& layer, const AttentionWeights& weights);
AttentionRule attention_rule(const Model& model, const LayerTensors& layer, const AttentionWeights& weights);
/// [length, 1] wide: what multiplies the queries of layers without rope (Llama-4).
at::Tensor query_temperature(const TileContext& context, const SequencePart& part);

/// Attention of new tokens to themselves and to what the cache holds; puts their keys and values there.
at::Tensor attend_with_cache(const SequencePart& part, const at::Tensor& queries, const at::Tensor& keys,
                             const at::Tensor& values, const AttentionRule& rule);

/// What the family has between the two matrices of an MLP.
kernels::GatedUnit gated_unit(const Model& model);
/// act(gate(x)) * up(x) for x [n, H] tile: what the down projection reads, [n, W] tile. The bias may be undefined.
at::Tensor activate(const TileContext& context, const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& bias,
                    TileScratch& scratch);
/// down(act(gate(x)) * up(x)); the result is a product, not yet rounded.
at::Tensor gated_mlp(const TileContext& context, const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& down,
                     TileScratch& scratch);

}  // namespace moetrim
