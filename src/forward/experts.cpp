// The experts of an MoE layer, outermost.

#include "forward/experts.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include <ATen/ATen.h>

#include "forward/kernels.h"
#include "forward/linear.h"

namespace moetrim {

namespace {

/// Weights that the first worker who needs them makes, while the others go on with other experts.
class LazyExpert {
 public:
  explicit LazyExpert(ExpertLoader load) : load_(std::move(load)) {}
  const ExpertWeights& weights() {
    std::call_once(once_, [this] {
      weights_ = load_();
      load_ = nullptr;
    });
    return weights_;
  }

 private:
  ExpertLoader load_;
  std::once_flag once_;
  ExpertWeights weights_;
};

/// A slice of one expert's rows, and its number in the order of sums.
struct TileTask {
  std::shared_ptr<LazyExpert> expert;
  std::int64_t begin = 0, end = 0;
  std::int64_t number = 0;
};

/// Hands out tiles expert by expert; the worker that crosses into a new expert fetches its weights.
class TileQueue {
 public:
  TileQueue(const ExpertRows& rows, const std::function<ExpertLoader()>& next_expert, std::int64_t tile_rows)
      : rows_(rows), next_expert_(next_expert), tile_rows_(tile_rows) {}

  std::optional<TileTask> take() {
    const std::lock_guard lock(mutex_);
    const auto experts = rows_.start.size() - 1;
    while (next_row_ == expert_end_) {
      if (expert_ == experts) return std::nullopt;
      // An expert without rows is fetched all the same: the stream delivers every expert in turn.
      lazy_ = std::make_shared<LazyExpert>(next_expert_());
      next_row_ = rows_.start[expert_];
      expert_end_ = rows_.start[++expert_];
    }
    TileTask task{lazy_, next_row_, std::min(next_row_ + tile_rows_, expert_end_), number_++};
    next_row_ = task.end;
    if (next_row_ == expert_end_) lazy_.reset();
    return task;
  }

 private:
  const ExpertRows& rows_;
  const std::function<ExpertLoader()>& next_expert_;
  std::int64_t tile_rows_;
  std::mutex mutex_;
  std::shared_ptr<LazyExpert> lazy_;
  std::size_t expert_ = 0;
  std::int64_t next_row_ = 0, expert_end_ = 0, number_ = 0;
};

/// Token numbers and gates of a slice of pairs, on the device.
struct TileRows {
  at::Tensor tokens;  // [n] i32
  at::Tensor gates;   // [n] f32
  at::Tensor input_gates;  // [n] f32, undefined in most families

  TileRows(const RoutedLayer& routed, const ExpertRows& rows, const TileTask& task, const at::Device& device) {
    const auto count = task.end - task.begin;
    tokens = at::empty({count}, at::kInt);
    gates = at::empty({count}, at::kFloat);
    auto* token = tokens.mutable_data_ptr<std::int32_t>();
    auto* gate = gates.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t pair = rows.pairs[static_cast<std::size_t>(task.begin + i)];
      token[i] = static_cast<std::int32_t>(pair / routed.experts_per_token);
      gate[i] = routed.gates[static_cast<std::size_t>(pair)];
    }
    if (!routed.input_gates.empty()) {
      input_gates = at::empty({count}, at::kFloat);
      auto* input_gate = input_gates.mutable_data_ptr<float>();
      for (std::int64_t i = 0; i < count; ++i) {
        input_gate[i] = routed.input_gates[static_cast<std::size_t>(rows.pairs[static_cast<std::size_t>(task.begin + i)])];
      }
      input_gates = input_gates.to(device);
    }
    tokens = tokens.to(device);
    gates = gates.to(device);
  }
};

void store_statistics(const ExpertRows& rows, const TileTask& task, const at::Tensor& norms, const at::Tensor& max_abs,
                      RoutedLayer& routed) {
  const at::Tensor n = norms.cpu();
  const at::Tensor m = max_abs.cpu();
  for (std::int64_t i = 0; i < task.end - task.begin; ++i) {
    const auto pair = static_cast<std::size_t>(rows.pairs[static_cast<std::size_t>(task.begin + i)]);
    routed.norms[pair] = n.const_data_ptr<float>()[i];
    routed.max_abs[pair] = m.const_data_ptr<float>()[i];
  }
}

}  // namespace

ExpertRows ExpertRows::group(const RoutedLayer& routed) {
  ExpertRows rows;
  rows.start.assign(static_cast<std::size_t>(routed.experts) + 1, 0);
  for (const auto id : routed.ids) ++rows.start[static_cast<std::size_t>(id) + 1];
  for (std::size_t e = 1; e < rows.start.size(); ++e) rows.start[e] += rows.start[e - 1];
  rows.pairs.resize(routed.ids.size());
  auto place = rows.start;
  for (std::size_t pair = 0; pair < routed.ids.size(); ++pair) {
    rows.pairs[static_cast<std::size_t>(place[static_cast<std::size_t>(routed.ids[pair])]++)] = static_cast<std::int64_t>(pair);
  }
  return rows;
}

at::Tensor expert_tile(const TileContext& context, const ExpertWeights& expert, const at::Tensor& x, const at::Tensor& rows,
                       const at::Tensor& input_gates, TileScratch& scratch) {
  const auto count = rows.size(0);
  at::Tensor gathered =
      grow(scratch.gathered, std::max(count, kExpertTileRows), x.size(1), context.numerics.tile(), context.device)
          .narrow(0, 0, count);
  kernels::gather_rows(context.numerics, x, rows, gathered);
  if (input_gates.defined()) {
    gathered.mul_(input_gates.unsqueeze(1).to(gathered.scalar_type()));
    kernels::round_product(context.numerics, gathered);
  }
  return gated_mlp(context, gathered, {expert.gate_up, expert.down, expert.gate_up_bias, expert.down_bias}, scratch);
}

void run_experts(const TileContext& context, const std::function<ExpertLoader()>& next_expert, const at::Tensor& x,
                 RoutedLayer& routed, at::Tensor& sum, ThreadPool& pool, std::vector<TileScratch>& scratch) {
  const ExpertRows rows = ExpertRows::group(routed);
  TileQueue queue(rows, next_expert, kExpertTileRows);
  TurnGate turn;
  pool.run(pool.size(), [&](std::int64_t, int worker) {
    try {
      while (const auto task = queue.take()) {
        const TileRows tile(routed, rows, *task, context.device);
        const at::Tensor out =
            expert_tile(context, task->expert->weights(), x, tile.tokens, tile.input_gates, scratch[static_cast<std::size_t>(worker)]);
        at::Tensor norms = at::empty({out.size(0)}, out.options().dtype(at::kFloat));
        at::Tensor max_abs = at::empty_like(norms);
        if (!turn.wait(task->number)) return;
        kernels::scatter_rows(context.numerics, out, tile.tokens, tile.gates, sum, norms, max_abs);
        turn.pass();
        store_statistics(rows, *task, norms, max_abs, routed);
      }
    } catch (...) {
      turn.abandon();
      throw;
    }
  });
}

at::Tensor shared_output(const TileContext& context, const LayerWeights& weights, const at::Tensor& x, TileScratch& scratch) {
  if (!weights.shared_down.defined()) return {};
  at::Tensor product = gated_mlp(context, x, {weights.shared_gate_up, weights.shared_down}, scratch);
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
