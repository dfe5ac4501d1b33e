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

/// Makes an expert's weights of bytes that are there: conversion and dequantisation, worth a thread of its own.
using ExpertLoader = std::function<ExpertWeights()>;

/// Runs every expert over its rows and adds gate * output into `sum`. Fills routed.norms and routed.max_abs.
/// Tiles are computed by any worker but added in the order (expert, token): one order of sums whatever the thread count.
/// @param next_expert  fetches expert 0, 1, … in turn, never concurrently; what it returns makes the weights, once and on
///                     any worker.
/// @param x            [T, H] stored, the block's normalised input
/// @param sum          [T, H] f32, zeroed by the caller
void run_experts(const TileContext& context, const std::function<ExpertLoader()>& next_expert, const at::Tensor& x,
                 RoutedLayer& routed, at::Tensor& sum, ThreadPool& pool, std::vector<TileScratch>& scratch);

/// One tile: gathers the rows of `pairs`, runs the expert, and returns its output [n, H] (a product, not yet rounded).
/// @param input_gates  [n] f32 that multiply the rows first, or undefined
at::Tensor expert_tile(const TileContext& context, const ExpertWeights& expert, const at::Tensor& x, const at::Tensor& rows,
                       const at::Tensor& input_gates, TileScratch& scratch);

/// Output [n, H] tile, rounded, of the experts that see every token; undefined where the layer has none. x [n, H] tile.
at::Tensor shared_output(const TileContext& context, const LayerWeights& weights, const at::Tensor& x, TileScratch& scratch);

}  // namespace moetrim
