// The experts of an MoE layer, backwards: sums per atomic expert, and what flows on to the router and to the block's input.
#pragma once

#include <functional>
#include <vector>

#include "forward/attention.h"
#include "forward/expert_tiles.h"
#include "forward/thread_pool.h"

namespace moetrim {

/// What an MoE block's experts are differentiated at.
struct ExpertPoint {
  const at::Tensor& input;           ///< [T, H] stored, the block's normalised input
  const at::Tensor& gradient;        ///< [T, H] wide, of the loss by the block's output
  const RoutedLayer& routed;         ///< ids and gates
  const std::vector<int>& tasks;     ///< [T] ascending
};

/// What flows on.
struct ExpertGradients {
  at::Tensor of_input;               ///< [T, H] wide, added to; undefined: not wanted
  std::vector<double> of_gates;      ///< [T, K] of gates, or of input gates where the family has them
};

/// Runs every expert backwards over its rows, see Backward. Sums have one order whatever the thread count.
/// @param fetch     see TileQueue
/// @param reversed  products and sums are filled
void reverse_experts(const TileContext& context, const FetchExpert& fetch, const ExpertPoint& point,
                     ReversedLayer& reversed, ExpertGradients& gradients, ThreadPool& pool, std::vector<TileScratch>& scratch);

}  // namespace moetrim
