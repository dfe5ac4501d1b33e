// What a forward pass holds between its layers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "forward/cuda_library.h"
#include "forward/input_watch.h"
#include "forward/output_head.h"
#include "forward/workplace.h"
#include "moetrim/forward.h"
#include "moetrim/machine.h"

namespace moetrim {

struct Forward::State : Workplace {
  State(const Model& m, const ForwardOptions& o) : Workplace(m, o) {
    if (!device.is_cpu()) host_pool = std::make_unique<ThreadPool>(o.threads > 0 ? o.threads : usable_cores());
  }

  /// Which run of an MoE block is in work.
  enum class BlockRun : std::uint8_t { only, first, second };

  void open(TokenBatch tokens, int first, const at::Tensor& states, int stop, LayerPart last_part);
  void lay_out_tokens();
  at::Tensor embedded(const std::vector<std::int32_t>& ids) const;
  LayerPart part() const { return layer + 1 == end ? last : LayerPart::whole; }
  void join_next_tokens(const LayerWeights& weights);
  void run_attention(const LayerTensors& tensors, const LayerWeights& weights, RoutedLayer& routed);
  void route(const LayerWeights& weights, const Tile& tile, const at::Tensor& normed, RoutedLayer& routed, TileScratch& own) const;
  const LayerMask* mask_of_token(std::int64_t token) const;
  void want_all_experts();
  bool works_in_groups() const;
  void run_moe(const LayerTensors& tensors, const LayerWeights& weights, RoutedLayer& routed, const ChooseExperts& choose);
  WeightBuffer expert_bytes(int expert);
  void route_again(const LayerWeights& weights, RoutedLayer& routed);
  void run_routed(const LayerTensors& tensors, RoutedLayer& routed);
  at::Tensor input_of(const Tile& tile, TileScratch& own) const;
  void measure_turns(RoutedLayer& routed);
  void finish(const LayerWeights& weights, RoutedLayer& routed);
  void finish_rows(const Tile& tile, at::Tensor& rows, const at::Tensor& shared, RoutedLayer& routed) const;
  void watch_head();
  void end_at_router(RoutedLayer& routed) const;
  void check_finite(const RoutedLayer& routed) const;

  TokenBatch batch;
  std::vector<Tile> tiles;
  std::vector<int> token_masks;  // [T] when the batch has masks
  int layer = 0, end = 0;
  LayerPart last = LayerPart::whole;  // of the last layer
  BlockRun block_run = BlockRun::only;
  LayerMask chosen;                // what the second run is restricted to
  std::vector<WeightBuffer> held;  // [E] what the second run finds in memory
  std::uint64_t held_bytes = 0;    // that were held in the first run
  VectorSums* sums = nullptr;    // of the layer in work, or null
  std::unique_ptr<InputWatch> inputs;  // likewise
  at::Tensor hidden;      // [T, H] stored
  at::Tensor moe_input;   // [T, H] stored
  at::Tensor routed_sum;  // [T, H] wide
  std::unique_ptr<ThreadPool> host_pool;  // beside a device, for what is done on the CPU
  std::unique_ptr<WeightStream> stream;
  std::unique_ptr<cuda::CopyStream> copies;  // opened when a layer's experts first run in groups on a device
  HeadWeights head;  // loaded when logits are first asked for
};

}  // namespace moetrim
