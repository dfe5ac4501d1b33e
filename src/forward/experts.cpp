// The experts of an MoE layer, outermost.

#include "forward/experts.h"

#include <algorithm>
#include <optional>

#include <ATen/ATen.h>

#include "forward/expert_watch.h"
#include "forward/input_watch.h"
#include "forward/kernels.h"
#include "forward/linear.h"

namespace moetrim {

namespace {

/// Switches atomic experts off: rows of tokens with the same mask lie together.
void mask_atoms(const TileTask& task, const ExpertRows& rows, int experts_per_token, const MaskOfToken& mask,
                at::Tensor& activated) {
  const auto mask_of = [&](std::int64_t row) {
    return mask(rows.pairs[static_cast<std::size_t>(task.begin + row)] / experts_per_token);
  };
  const auto count = activated.size(0);
  for (std::int64_t first = 0, last = 0; first < count; first = last) {
    const LayerMask* of_rows = mask_of(first);
    while (last < count && mask_of(last) == of_rows) ++last;
    if (of_rows == nullptr || of_rows->atoms.empty()) continue;
    const std::vector<bool>& kept = of_rows->atoms[static_cast<std::size_t>(task.expert)];
    const at::Tensor factors = at::tensor(std::vector<float>(kept.begin(), kept.end())).to(activated.device(), activated.scalar_type());
    activated.narrow(0, first, last - first).mul_(factors);
  }
}

}  // namespace

at::Tensor expert_input(const TileContext& context, const TileRows& rows, const at::Tensor& x, TileScratch& scratch) {
  const auto count = rows.tokens.size(0);
  at::Tensor gathered =
      grow(scratch.gathered, std::max(count, kExpertTileRows), x.size(1), context.numerics.tile(), context.device)
          .narrow(0, 0, count);
  kernels::gather_rows(context.numerics, x, rows.tokens, gathered);
  if (rows.input_gates.defined()) {
    gathered.mul_(rows.input_gates.unsqueeze(1).to(gathered.scalar_type()));
    kernels::round_product(context.numerics, gathered);
  }
  return gathered;
}

namespace {

/// What every tile of a layer is run with.
struct LayerRun {
  const TileContext& context;
  const at::Tensor& x;         ///< [T, H] stored
  const MaskOfToken& mask;
  const ExpertRows& rows;
  RoutedLayer& routed;
  at::Tensor& sum;
  ExpertWatch* watch;          ///< or null
  InputWatch* inputs;          ///< or null
};

/// An expert over rows that were routed to it. Returns false when another worker has failed.
bool run_routed_tile(const LayerRun& run, const TileTask& task, TurnGate& turn, int worker, TileScratch& own) {
  const TileRows tile(run.routed, run.rows, task, run.context.numerics, run.context.device);
  const ExpertWeights& expert = task.weights->weights();
  const at::Tensor input = expert_input(run.context, tile, run.x, own);
  at::Tensor activated = activate(run.context, input, expert.gate_up, expert.gate_up_bias, own);
  if (run.mask) mask_atoms(task, run.rows, run.routed.experts_per_token, run.mask, activated);
  at::Tensor out = linear(activated, expert.down, expert.down_bias, own.mlp_out);
  WatchedTile watched;
  if (run.watch != nullptr) watched = run.watch->watch_routed(task, input, activated, out, worker);
  const ExpertInputs inputs = run.inputs != nullptr ? ExpertInputs(input, activated) : ExpertInputs();
  at::Tensor norms = at::empty({out.size(0)}, out.options().dtype(at::kFloat));
  at::Tensor max_abs = at::empty_like(norms);
  if (!turn.wait(task.number)) return false;
  kernels::scatter_rows(run.context.numerics, out, tile.tokens, tile.gates, run.sum, norms, max_abs);
  if (run.watch != nullptr) run.watch->add(task, watched);
  if (run.inputs != nullptr) run.inputs->add_expert(task, run.rows, run.routed.experts_per_token, inputs);
  turn.pass();
  store_statistics(run.rows, task.begin, norms, max_abs, run.routed);
  return true;
}

/// A tile that only the watch wants: common tokens, or no rows at all.
bool run_watched_tile(const LayerRun& run, const TileTask& task, TurnGate& turn, int worker) {
  const WatchedTile watched = task.common ? run.watch->run_common(task, run.x, worker) : run.watch->watch_weights(task);
  if (!turn.wait(task.number)) return false;
  run.watch->add(task, watched);
  turn.pass();
  run.watch->finish_expert(task);
  return true;
}

}  // namespace

void run_experts(const TileContext& context, const FetchExpert& fetch, const at::Tensor& x,
                 const MaskOfToken& mask, RoutedLayer& routed, at::Tensor& sum, ThreadPool& pool,
                 std::vector<TileScratch>& scratch, VectorSums* sums, InputWatch* inputs) {
  const ExpertRows rows = ExpertRows::group(routed);
  std::optional<ExpertWatch> watch;
  if (sums != nullptr) watch.emplace(context, routed, rows, *sums, pool.size());
  TileQueue queue(rows, fetch, watch ? watch->visit() : Visit::routed, watch ? watch->common_rows() : 0);
  const LayerRun run{context, x, mask, rows, routed, sum, watch ? &*watch : nullptr, inputs};
  TurnGate turn;
  pool.run(pool.size(), [&](std::int64_t, int worker) {
    TileScratch& own = scratch[static_cast<std::size_t>(worker)];
    try {
      while (const auto task = queue.take()) {
        const bool routed_rows = !task->common && task->begin < task->end;
        const bool passed = routed_rows ? run_routed_tile(run, *task, turn, worker, own)
                                        : run_watched_tile(run, *task, turn, worker);
        if (!passed) return;
      }
    } catch (...) {
      turn.abandon();
      throw;
    }
  });
  if (watch) watch->finish();
}

at::Tensor shared_output(const TileContext& context, const LayerWeights& weights, const at::Tensor& x, TileScratch& scratch) {
  if (!weights.shared_down.defined()) return {};
  at::Tensor product = gated_mlp(context, x, weights.shared_gate_up, weights.shared_down, scratch);
  if (!weights.shared_router.defined()) {
    kernels::round_product(context.numerics, product);
    return product;
  }
  const at::Tensor gate = linear(x, weights.shared_router, {}, scratch.router_logits);
  at::Tensor out = grow(scratch.shared, x.size(0), x.size(1), x.scalar_type(), context.device).narrow(0, 0, x.size(0));
  kernels::gate_rows(context.numerics, gate, product, out);
  return out;
}

}  // namespace moetrim
