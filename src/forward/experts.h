// The experts of an MoE layer, outermost: each is loaded once and sees all tokens routed to it, in tiles.
#pragma once

#include <functional>
#include <vector>

#include "forward/attention.h"
#include "forward/expert_tiles.h"
#include "forward/thread_pool.h"
#include "moetrim/vector_sums.h"

namespace moetrim {

class InputWatch;

/// Runs every expert over its rows and adds gate * output into `sum`. Fills routed.norms and routed.max_abs.
/// Tiles are computed by any worker but added in the order (expert, token): one order of sums whatever the thread count.
/// @param fetch  see TileQueue
/// @param x      [T, H] stored, the block's normalised input
/// @param mask   which atomic experts are switched off for a token; may be empty
/// @param sum    [T, H] wide, zeroed by the caller
/// @param sums   further sums to add to, or null
/// @param inputs what notes the experts' inputs, or null
void run_experts(const TileContext& context, const FetchExpert& fetch, const at::Tensor& x,
                 const MaskOfToken& mask, RoutedLayer& routed, at::Tensor& sum, ThreadPool& pool,
                 std::vector<TileScratch>& scratch, VectorSums* sums = nullptr, InputWatch* inputs = nullptr);

/// Rows of a tile as an expert sees them, [n, H] tile. x [T, H] stored.
at::Tensor expert_input(const TileContext& context, const TileRows& rows, const at::Tensor& x, TileScratch& scratch);

/// Output [n, H] tile, rounded, of the experts that see every token; undefined where the layer has none. x [n, H] tile.
at::Tensor shared_output(const TileContext& context, const LayerWeights& weights, const at::Tensor& x, TileScratch& scratch);

}  // namespace moetrim
