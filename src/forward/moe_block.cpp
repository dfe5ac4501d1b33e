// The MoE block of a forward pass: the routed experts, once or a second time with fewer of them, and what joins the residual stream.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "forward/expert_groups.h"
#include "forward/expert_watch.h"
#include "forward/experts.h"
#include "forward/forward_state.h"
#include "forward/kernels.h"
#include "forward/linear.h"
#include "moetrim/error.h"

namespace moetrim {

void Forward::State::want_all_experts() {
  std::vector<std::int32_t> all(static_cast<std::size_t>(model.experts));
  std::iota(all.begin(), all.end(), 0);
  stream->want_experts(all);
}

/// On a device, unless the run is one for checking, measures vectors or inputs, or switches atomic experts off, which is done expert by expert.
bool Forward::State::works_in_groups() const {
  const auto masks_atoms = [this](const ExpertMask& mask) { return !mask[static_cast<std::size_t>(layer)].atoms.empty(); };
  return device.is_cuda() && numerics.precision != Precision::fp64 && sums == nullptr && inputs == nullptr &&
         chosen.atoms.empty() && std::none_of(batch.masks.begin(), batch.masks.end(), masks_atoms);
}

void Forward::State::run_moe(const LayerTensors& tensors, const LayerWeights& weights, RoutedLayer& routed,
                             const ChooseExperts& choose) {
  if (sums != nullptr) sum_router(weights, routed, moe_input, *sums, pool);
  if (choose) {
    block_run = BlockRun::first;
    held.assign(static_cast<std::size_t>(model.experts), nullptr);
    run_routed(tensors, routed);
    measure_turns(routed);
    chosen = choose(routed);
    block_run = BlockRun::second;
    sums = nullptr;
    route_again(weights, routed);
  }
  run_routed(tensors, routed);
  finish(weights, routed);
  block_run = BlockRun::only;
  chosen = {};
  held.clear();
  held_bytes = 0;
}

/// What a block needs again is kept as far as it has room.
WeightBuffer Forward::State::expert_bytes(int expert) {
  if (block_run == BlockRun::only) return stream->take_expert(expert);
  WeightBuffer& kept = held[static_cast<std::size_t>(expert)];
  if (block_run == BlockRun::second) return kept != nullptr ? std::exchange(kept, nullptr) : stream->take_expert(expert);
  const WeightBuffer bytes = stream->take_expert(expert);
  std::uint64_t size = 0;
  for (const ByteRange& range : expert_group(model.layer[static_cast<std::size_t>(layer)], expert)) size += range.size;
  if (held_bytes + size <= options.hold_bytes) {
    held_bytes += size;
    kept = bytes;
  }
  return bytes;
}

/// Routes all tokens by the mask that was chosen, and reads what that needs and is not held.
void Forward::State::route_again(const LayerWeights& weights, RoutedLayer& routed) {
  for (std::size_t e = 0; e < held.size(); ++e) {
    if (!chosen.kept.empty() && !chosen.kept[e]) held[e] = nullptr;
  }
  pool.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int worker) {
    const Tile& tile = tiles[static_cast<std::size_t>(index)];
    TileScratch& own = scratch[static_cast<std::size_t>(worker)];
    route(weights, tile, input_of(tile, own), routed, own);
  });
  std::vector<std::int32_t> missing;
  for (const std::int32_t expert : std::set<std::int32_t>(routed.ids.begin(), routed.ids.end())) {
    if (held[static_cast<std::size_t>(expert)] == nullptr) missing.push_back(expert);
  }
  stream->want_again(missing);
}

/// The routed experts, to routed_sum.
void Forward::State::run_routed(const LayerTensors& tensors, RoutedLayer& routed) {
  routed_sum.zero_();
  const bool in_groups = works_in_groups();
  const FetchExpert fetch = [&](int expert) -> ExpertLoader {
    return [this, &tensors, expert, in_groups, bytes = expert_bytes(expert)] {
      const c10::InferenceMode no_autograd;
      return load_expert(model, tensors, expert, bytes, numerics, device, /*queued=*/in_groups);
    };
  };
  if (in_groups) {
    const cuda::Table& library = cuda::library();
    const int number = device.index();
    if (copies == nullptr) copies = library.open_copy_stream(number);
    const GroupLimits limits = plan_groups(model, numerics, library.memory(number), library.multiplies_groups(number));
    run_expert_groups(context, fetch, copies.get(), limits, moe_input, routed, routed_sum);
  } else {
    MaskOfToken mask;
    if (!token_masks.empty() || block_run == BlockRun::second) mask = [this](std::int64_t token) { return mask_of_token(token); };
    run_experts(context, fetch, moe_input, mask, routed, routed_sum, pool, scratch, sums,
                block_run == BlockRun::second ? nullptr : inputs.get());
  }
}

/// The block's input, [n, H] tile.
at::Tensor Forward::State::input_of(const Tile& tile, TileScratch& own) const {
  return grow(own.normed, tile.tokens, model.hidden, numerics.tile(), device)
      .narrow(0, 0, tile.tokens)
      .copy_(moe_input.narrow(0, tile.begin, tile.tokens));
}

/// Leaves the hidden states as they are. Turns do not depend on shared experts.
void Forward::State::measure_turns(RoutedLayer& routed) {
  pool.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int) {
    const Tile& tile = tiles[static_cast<std::size_t>(index)];
    at::Tensor rows = hidden.narrow(0, tile.begin, tile.tokens).clone();
    finish_rows(tile, rows, {}, routed);
  });
  check_finite(routed);
}

void Forward::State::finish(const LayerWeights& weights, RoutedLayer& routed) {
  if (inputs != nullptr) inputs->begin_pass();
  pool.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int worker) {
    const Tile& tile = tiles[static_cast<std::size_t>(index)];
    TileScratch& own = scratch[static_cast<std::size_t>(worker)];
    at::Tensor rows = hidden.narrow(0, tile.begin, tile.tokens);
    at::Tensor shared;
    WatchedInputs watched(inputs.get(), tile, index, own);
    if (weights.shared_down.defined()) shared = shared_output(context, weights, input_of(tile, own), own);
    watched.pass();
    finish_rows(tile, rows, shared, routed);
  });
  check_finite(routed);
}

void Forward::State::finish_rows(const Tile& tile, at::Tensor& rows, const at::Tensor& shared, RoutedLayer& routed) const {
  at::Tensor turns = at::empty({tile.tokens}, at::TensorOptions().dtype(at::kDouble).device(device));
  kernels::finish_rows(numerics, rows, routed_sum.narrow(0, tile.begin, tile.tokens), shared, turns, model.residual_scale);
  const at::Tensor on_cpu = turns.cpu();
  std::copy_n(on_cpu.const_data_ptr<double>(), tile.tokens, routed.turns.begin() + tile.begin);
}

/// Nothing behind the router ran: a token's place among the turns only says whether its logits are numbers.
void Forward::State::end_at_router(RoutedLayer& routed) const {
  std::fill(routed.norms.begin(), routed.norms.end(), 0.0F);
  std::fill(routed.max_abs.begin(), routed.max_abs.end(), 0.0F);
  for (std::size_t t = 0; t < routed.turns.size(); ++t) {
    const float* logits = routed.logits.data() + t * static_cast<std::size_t>(routed.experts);
    const bool finite = std::all_of(logits, logits + routed.experts, [](float logit) { return std::isfinite(logit); });
    routed.turns[t] = finite ? 0.0 : std::numeric_limits<double>::quiet_NaN();
  }
  check_finite(routed);
}

void Forward::State::check_finite(const RoutedLayer& routed) const {
  for (std::int64_t t = 0; t < routed.tokens; ++t) {
    if (std::isfinite(routed.turns[static_cast<std::size_t>(t)])) continue;
    throw InvalidInput(fmt::format("{}: layer {} gives NaN or infinity at token {}; run `moetrim verify --deep` on the "
                                   "checkpoint, or try --dtype fp32", model.checkpoint->folder().string(), layer, t));
  }
}

}  // namespace moetrim
