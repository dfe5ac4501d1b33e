// The experts of an MoE layer, backwards.

#include "forward/expert_gradients.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "forward/experts.h"
#include "forward/kernels.h"
#include "forward/linear.h"
#include "forward/row_importance.h"

namespace moetrim {

namespace {

/// Rows [begin, end) of a tile that belong to one task, and their sums: A, B and J [3, F] f64, and of the matrices' rows.
struct TaskRows {
  std::int64_t begin = 0, end = 0;
  int task = 0;
  at::Tensor sums = {};
  MatrixRows rows = {};
};

std::vector<TaskRows> split_by_task(const ExpertRows& rows, const TileTask& tile, int experts_per_token,
                                    const std::vector<int>& tasks) {
  std::vector<TaskRows> out;
  for (std::int64_t i = 0; i < tile.end - tile.begin; ++i) {
    const auto token = rows.pairs[static_cast<std::size_t>(tile.begin + i)] / experts_per_token;
    const int task = tasks[static_cast<std::size_t>(token)];
    if (out.empty() || out.back().task != task) out.push_back({.begin = i, .end = i, .task = task});
    out.back().end = i + 1;
  }
  return out;
}

/// One tile's way back.
struct ReversedTile {
  std::vector<TaskRows> by_task;
  at::Tensor products;   ///< [n] wide: gradient times ungated output
  at::Tensor of_gates;   ///< [n] wide: of input gates; undefined in most families
  at::Tensor of_rows;    ///< [n, H] tile: of the rows of the block's input; undefined: not wanted
};

/// Rows of a wide matrix as a tile.
at::Tensor gathered(const TileContext& context, const at::Tensor& x, const at::Tensor& rows, at::Tensor& scratch) {
  const Numerics exact{.precision = context.numerics.precision == Precision::fp64 ? Precision::fp64 : Precision::fp32};
  const auto count = rows.size(0);
  at::Tensor out = grow(scratch, std::max(count, kExpertTileRows), x.size(1), exact.wide(), context.device).narrow(0, 0, count);
  kernels::gather_rows(exact, x, rows, out);
  return out.to(context.numerics.tile());
}

ReversedTile reverse_tile(const TileContext& context, const ExpertWeights& expert, const TileRows& rows, const ExpertPoint& point,
                          std::vector<TaskRows> by_task, bool input_wanted, TileScratch& scratch) {
  const Numerics& numerics = context.numerics;
  const auto count = rows.tokens.size(0);
  const at::Tensor input = expert_input(context, rows, point.input, scratch);
  const at::Tensor activated = activate(context, input, expert.gate_up, expert.gate_up_bias, scratch);
  at::Tensor gate_up = scratch.gate_up.narrow(0, 0, count);  // what activate() read; becomes its own gradient
  const at::Tensor gradient = gathered(context, point.gradient, rows.tokens, scratch.gradient);
  const at::Tensor of_activated = linear(gradient, expert.down.t(), {}, scratch.of_activated);
  ReversedTile out{.by_task = std::move(by_task), .products = at::empty({count}, rows.gates.options()), .of_gates = {}, .of_rows = {}};
  for (TaskRows& part : out.by_task) {
    const auto own = [&](const at::Tensor& x) { return x.narrow(0, part.begin, part.end - part.begin); };
    part.sums = at::zeros({3, activated.size(1)}, at::kDouble);
    at::Tensor part_gate_up = own(gate_up);
    at::Tensor part_products = own(out.products);
    kernels::reverse_atoms(numerics, gated_unit(context.model), own(activated), own(of_activated), own(rows.gates), part_gate_up,
                           part_products, part.sums);
    if (!expert.down_rest.defined()) continue;
    part.rows = row_importance(expert, {.input = own(input), .activated = own(activated), .of_gate_up = part_gate_up,
                                        .of_output = own(gradient) * own(rows.gates).unsqueeze(1)});
  }
  if (expert.down_bias.defined()) out.products.add_(at::mv(gradient, expert.down_bias.to(gradient.scalar_type())));
  if (!input_wanted) return out;
  out.of_rows = linear(gate_up, expert.gate_up.t(), {}, scratch.mlp_out);
  if (!rows.input_gates.defined()) return out;
  const at::Tensor ungated = point.input.index_select(0, rows.tokens).to(numerics.wide());
  out.of_gates = (ungated * out.of_rows.to(numerics.wide())).sum(1);
  out.of_rows.mul_(rows.input_gates.unsqueeze(1).to(out.of_rows.scalar_type()));
  return out;
}

void add_to(double* out, const at::Tensor& values) {
  const double* from = values.const_data_ptr<double>();
  for (std::int64_t i = 0; i < values.numel(); ++i) out[i] += from[i];
}

void add_sums(const TaskRows& part, int expert, const ReversedLayer& layer, AtomSums& sums) {
  const std::int64_t row = static_cast<std::int64_t>(part.task) * layer.experts + expert;
  sums.tokens[static_cast<std::size_t>(row)] += static_cast<double>(part.end - part.begin);
  const auto at = row * part.sums.size(1);
  add_to(sums.activation.data() + at, part.sums[0]);
  add_to(sums.gradient.data() + at, part.sums[1]);
  add_to(sums.joint.data() + at, part.sums[2]);
}

void add_rows(const TaskRows& part, int expert, const ReversedLayer& layer, RowSums& sums) {
  if (!part.rows.gate.defined()) return;
  const std::int64_t row = static_cast<std::int64_t>(part.task) * layer.experts + expert;
  add_to(sums.gate.data() + row * part.rows.gate.size(0), part.rows.gate);
  add_to(sums.up.data() + row * part.rows.up.size(0), part.rows.up);
  add_to(sums.down.data() + row * part.rows.down.size(0), part.rows.down);
}

/// Squared lengths of the atoms' weights.
void measure_weights(const ExpertWeights& weights, int expert, AtomSums& sums) {
  const at::Tensor down = at::linalg_vector_norm(weights.down, 2, 0, /*keepdim=*/false, at::kDouble).square().cpu();
  const at::Tensor rows = at::linalg_vector_norm(weights.gate_up, 2, 1, /*keepdim=*/false, at::kDouble).square().cpu();
  const auto width = down.size(0);
  add_to(sums.down_squares.data() + expert * width, down);
  add_to(sums.gate_up_squares.data() + expert * width, rows.slice(0, 0, width));
  add_to(sums.gate_up_squares.data() + expert * width, rows.slice(0, width));
}

}  // namespace

void reverse_experts(const TileContext& context, const FetchExpert& fetch, const ExpertPoint& point,
                     ReversedLayer& reversed, ExpertGradients& gradients, ThreadPool& pool, std::vector<TileScratch>& scratch) {
  const RoutedLayer& routed = point.routed;
  const ExpertRows rows = ExpertRows::group(routed);
  const bool measured = !reversed.sums.down_squares.empty();
  if (!measured) {
    const auto atoms = static_cast<std::size_t>(context.model.experts * context.model.expert_width);
    reversed.sums.down_squares.assign(atoms, 0.0);
    reversed.sums.gate_up_squares.assign(atoms, 0.0);
  }
  reversed.products.resize(routed.ids.size());
  gradients.of_gates.resize(routed.ids.size());
  TileQueue queue(rows, fetch, measured ? Visit::routed : Visit::every);
  TurnGate turn;
  const Numerics exact{.precision = context.numerics.precision == Precision::fp64 ? Precision::fp64 : Precision::fp32};
  pool.run(pool.size(), [&](std::int64_t, int worker) {
    const c10::NoGradGuard no_tape;
    TileScratch& own = scratch[static_cast<std::size_t>(worker)];
    try {
      while (const auto task = queue.take()) {
        const ExpertWeights& weights = task->weights->weights();
        if (!measured && task->first) measure_weights(weights, task->expert, reversed.sums);
        if (task->begin == task->end) {  // no token chose it
          if (!turn.wait(task->number)) return;
          turn.pass();
          continue;
        }
        const TileRows tile(routed, rows, *task, context.numerics, context.device);
        const ReversedTile back = reverse_tile(context, weights, tile, point,
                                               split_by_task(rows, *task, routed.experts_per_token, point.tasks),
                                               gradients.of_input.defined(), own);
        const at::Tensor products = back.products.to(at::kCPU, at::kDouble);
        const at::Tensor of_gates = back.of_gates.defined() ? back.of_gates.to(at::kCPU, at::kDouble) : products;
        for (std::int64_t i = 0; i < products.size(0); ++i) {
          const auto pair = static_cast<std::size_t>(rows.pairs[static_cast<std::size_t>(task->begin + i)]);
          reversed.products[pair] = routed.gates[pair] * products.const_data_ptr<double>()[i];
          gradients.of_gates[pair] = of_gates.const_data_ptr<double>()[i];
        }
        if (!turn.wait(task->number)) return;
        for (const TaskRows& part : back.by_task) {
          add_sums(part, task->expert, reversed, reversed.sums);
          add_rows(part, task->expert, reversed, reversed.rows);
        }
        if (back.of_rows.defined()) {
          const at::Tensor ones = at::ones_like(tile.gates);
          at::Tensor norms = at::empty({back.of_rows.size(0)}, tile.gates.options().dtype(at::kFloat));
          at::Tensor max_abs = at::empty_like(norms);
          kernels::scatter_rows(exact, back.of_rows.to(exact.wide()), tile.tokens, ones, gradients.of_input, norms, max_abs);
        }
        turn.pass();
      }
    } catch (...) {
      turn.abandon();
      throw;
    }
  });
}

}  // namespace moetrim
