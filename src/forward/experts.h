// The experts of an MoE layer, outermost: each is loaded once and sees all tokens routed to it, in tiles.
#pragma once

#include <functional>
#include <vector>

#include "forward/attention.h"
#include "forward/thread_pool.h"
#include "forward/weight_stream.h"

namespace moetrim {

/// Rows of a tile: every tile packs the weights anew inside the matrix product, and at 512 rows that no longer shows.
inline constexpr std::int64_t kExpertTileRows = 512;

/// The (token, slot) pairs of a layer grouped by expert; within an expert by token.
struct ExpertRows {
  std::vector<std::int64_t> start;   ///< [E + 1] into pairs
  std::vector<std::int64_t> pairs;   ///< token * K + slot

  static ExpertRows group(const RoutedLayer& routed);
};

/// Runs every expert over its rows and adds gate * output into `sum`. Fills routed.norms and routed.max_abs.
/// Tiles are computed by any worker but added in the order (expert, token): one order of sums whatever the thread count.
/// @param next_expert  weights of expert 0, 1, … in turn; called once per expert, never concurrently.
/// @param x            [T, H] stored, the block's normalised input
/// @param sum          [T, H] f32, zeroed by the caller
void run_experts(const TileContext& context, const std::function<ExpertWeights()>& next_expert, const at::Tensor& x,
                 RoutedLayer& routed, at::Tensor& sum, ThreadPool& pool, std::vector<TileScratch>& scratch);

/// One tile: gathers the rows of `pairs`, runs the expert, and returns its output [n, H] (a product, not yet rounded).
at::Tensor expert_tile(const TileContext& context, const ExpertWeights& expert, const at::Tensor& x, const at::Tensor& rows,
                       TileScratch& scratch);

}  // namespace moetrim
