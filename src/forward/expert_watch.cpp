// Watches the experts of a layer run.

#include "forward/expert_watch.h"

#include <algorithm>
#include <cmath>
#include <mutex>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "forward/kernels.h"
#include "forward/linear.h"
#include "forward/quantise_weight.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

/// f32 or f64 on the CPU, rows close together.
at::Tensor on_host(const at::Tensor& x) {
  return x.to(at::kCPU, x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

/// Calls body(values of a row, their number) with float or double values.
template <class Body>
void with_row(const at::Tensor& x, std::int64_t row, const Body& body) {
  const std::int64_t width = x.size(1);
  if (x.scalar_type() == at::kDouble) return body(x.const_data_ptr<double>() + row * width, width);
  body(x.const_data_ptr<float>() + row * width, width);
}

void add_row(double* sum, const at::Tensor& x, std::int64_t row) {
  with_row(x, row, [sum](const auto* values, std::int64_t width) {
    for (std::int64_t i = 0; i < width; ++i) sum[i] += values[i];
  });
}

double square_of_row(const at::Tensor& x, std::int64_t row) {
  double sum = 0;
  with_row(x, row, [&sum](const auto* values, std::int64_t width) {
    for (std::int64_t i = 0; i < width; ++i) sum += static_cast<double>(values[i]) * values[i];
  });
  return sum;
}

void take_maxima(double* largest, const at::Tensor& x, std::int64_t row) {
  with_row(x, row, [largest](const auto* values, std::int64_t width) {
    for (std::int64_t i = 0; i < width; ++i) largest[i] = std::max(largest[i], std::abs(static_cast<double>(values[i])));
  });
}

/// [K] f64: the largest magnitude of every column of a matrix [N, K].
at::Tensor column_maxima(const at::Tensor& weight) { return weight.abs().amax(0).to(at::kCPU, at::kDouble); }

void take_maxima(std::span<double> largest, const at::Tensor& maxima) {
  const double* from = maxima.const_data_ptr<double>();
  for (std::size_t i = 0; i < largest.size(); ++i) {
    if (from[i] > largest[i] || std::isnan(from[i])) largest[i] = from[i];  // NaN stays, to be found in finish()
  }
}

/// Upper triangle of sum z z^T over rows [first, last) of the matrix: every element has the order of the tokens.
void add_gram_rows(const RoutedLayer& routed, VectorSums& sums, std::int64_t first, std::int64_t last) {
  const std::int64_t experts = routed.experts;
  for (std::int64_t t = 0; t < routed.tokens; ++t) {
    const std::int32_t task = sums.task[static_cast<std::size_t>(t)];
    if (task < 0) continue;
    const float* z = routed.logits.data() + t * experts;
    double* gram = sums.logit_gram.data() + task * experts * experts;
    for (std::int64_t i = first; i < last; ++i) {
      const double zi = z[i];
      double* row = gram + i * experts;
      for (std::int64_t j = i; j < experts; ++j) row[j] += zi * z[j];
    }
  }
}

void mirror(VectorSums& sums, std::int64_t experts) {
  for (int task = 0; task < sums.tasks; ++task) {
    double* gram = sums.logit_gram.data() + task * experts * experts;
    for (std::int64_t i = 0; i < experts; ++i) {
      for (std::int64_t j = 0; j < i; ++j) gram[i * experts + j] = gram[j * experts + i];
    }
  }
}

/// Rows of the router's input [begin, end), by task.
void take_input_maxima(const at::Tensor& x, std::int64_t begin, std::int64_t end, VectorSums& sums, std::mutex& mutex) {
  const std::int64_t width = x.size(1);
  const at::Tensor rows = on_host(x.narrow(0, begin, end - begin));
  std::vector<double> largest(static_cast<std::size_t>(width), 0.0);
  for (std::int64_t t = begin; t < end;) {
    const std::int32_t task = sums.task[static_cast<std::size_t>(t)];
    std::fill(largest.begin(), largest.end(), 0.0);
    for (; t < end && sums.task[static_cast<std::size_t>(t)] == task; ++t) take_maxima(largest.data(), rows, t - begin);
    if (task < 0) continue;
    const std::lock_guard lock(mutex);
    double* out = sums.router_input_max.data() + task * width;
    for (std::size_t i = 0; i < largest.size(); ++i) out[i] = std::max(out[i], largest[i]);
  }
}

/// out = weight x for x [F] in fp64, one sum a row. weight [H, F] f32 or f64.
void multiply_in_fp64(const at::Tensor& weight, const double* x, double* out) {
  for (std::int64_t h = 0; h < weight.size(0); ++h) {
    double sum = 0;
    with_row(weight, h, [&](const auto* w, std::int64_t width) {
      for (std::int64_t k = 0; k < width; ++k) sum += static_cast<double>(w[k]) * x[k];
    });
    out[h] = sum;
  }
}

}  // namespace

double* ExpertWatch::row_of(std::span<double> values, std::int32_t task, int expert) const {
  const std::size_t pairs = static_cast<std::size_t>(sums_.tasks) * static_cast<std::size_t>(routed_.experts);
  const std::int64_t pair = static_cast<std::int64_t>(task) * routed_.experts + expert;
  return values.data() + static_cast<std::size_t>(pair) * (values.size() / pairs);
}

WatchedTile ExpertWatch::watch_weights(const TileTask& task) const {
  WatchedTile tile;
  if (task.first && !sums_.weight_max.empty()) tile.weight_max = column_maxima(task.weights->weights().gate_up);
  return tile;
}

WatchedTile ExpertWatch::watch_routed(const TileTask& task, const at::Tensor& input, const at::Tensor& activated,
                                      at::Tensor& output, int worker) {
  kernels::round_product(context_.numerics, output);
  WatchedTile tile = watch_weights(task);
  tile.input = on_host(input);
  tile.activated = on_host(activated);
  tile.output = on_host(output);
  if (!sums_.quantisation_error.empty()) tile.error_squares = quantised_errors(task, input, tile.output, worker);
  return tile;
}

std::vector<double> ExpertWatch::quantised_errors(const TileTask& task, const at::Tensor& input, const at::Tensor& output,
                                                  int worker) {
  TileScratch& own = scratch_[static_cast<std::size_t>(worker)];
  const ExpertWeights& expert = task.weights->weights();
  const std::int64_t count = output.size(0);
  std::vector<double> squares(static_cast<std::size_t>(count * kQuantisedRuns));
  for (int bits = 1; bits <= kQuantisedRuns; ++bits) {
    const at::Tensor activated = activate(context_, input, quantise_weight(expert.gate_up, bits), expert.gate_up_bias, own);
    at::Tensor out = linear(activated, quantise_weight(expert.down, bits), expert.down_bias, own.mlp_out);
    kernels::round_product(context_.numerics, out);
    const at::Tensor change = on_host(out) - output;
    for (std::int64_t i = 0; i < count; ++i) {
      squares[static_cast<std::size_t>(i * kQuantisedRuns + bits - 1)] = square_of_row(change, i);
    }
  }
  return squares;
}

WatchedTile ExpertWatch::run_common(const TileTask& task, const at::Tensor& x, int worker) {
  TileScratch& own = scratch_[static_cast<std::size_t>(worker)];
  const ExpertWeights& expert = task.weights->weights();
  const std::int64_t count = task.end - task.begin;
  at::Tensor tokens = at::empty({count}, at::kInt);
  std::copy_n(sums_.common_tokens.data() + task.begin, count, tokens.mutable_data_ptr<std::int32_t>());
  const Numerics& numerics = context_.numerics;
  at::Tensor input = grow(own.gathered, kExpertTileRows, x.size(1), numerics.tile(), context_.device).narrow(0, 0, count);
  kernels::gather_rows(numerics, x, tokens.to(context_.device), input);
  WatchedTile tile = watch_weights(task);
  tile.activated = on_host(activate(context_, input, expert.gate_up, expert.gate_up_bias, own));
  return tile;
}

void ExpertWatch::add(const TileTask& task, const WatchedTile& tile) {
  if (tile.weight_max.defined()) take_maxima(sums_.weight_max, tile.weight_max);
  if (task.common) return add_common(task, tile);
  add_routed(task, tile);
}

void ExpertWatch::add_routed(const TileTask& task, const WatchedTile& tile) {
  for (std::int64_t i = 0; i < task.end - task.begin; ++i) {
    const auto pair = static_cast<std::size_t>(rows_.pairs[static_cast<std::size_t>(task.begin + i)]);
    const auto token = static_cast<std::int32_t>(pair / static_cast<std::size_t>(routed_.experts_per_token));
    const std::int32_t of_task = sums_.task[static_cast<std::size_t>(token)];
    if (of_task < 0) continue;
    add_row(row_of(sums_.routed_activation, of_task, task.expert), tile.activated, i);
    add_row(row_of(sums_.routed_output, of_task, task.expert), tile.output, i);
    *row_of(sums_.output_square, of_task, task.expert) += square_of_row(tile.output, i);
    take_maxima(row_of(sums_.input_max, of_task, task.expert), tile.input, i);
    if (!tile.error_squares.empty()) add_error(task.expert, token, pair, tile.error_squares.data() + i * kQuantisedRuns);
  }
}

void ExpertWatch::add_error(int expert, std::int32_t token, std::size_t pair, const double* squares) {
  const std::int32_t demonstration = sums_.demonstration[static_cast<std::size_t>(token)];
  if (open_.expert != expert || open_.demonstration != demonstration) {
    end_demonstration();
    const std::int32_t of_task = sums_.task[static_cast<std::size_t>(token)];
    open_ = {.expert = expert, .demonstration = demonstration, .task = of_task, .squares = {}};
  }
  const double gate = routed_.gates[pair];
  for (std::size_t run = 0; run < open_.squares.size(); ++run) open_.squares[run] += gate * gate * squares[run];
}

void ExpertWatch::end_demonstration() {
  if (open_.expert < 0) return;
  double* error = row_of(sums_.quantisation_error, open_.task, open_.expert);
  for (std::size_t run = 0; run < open_.squares.size(); ++run) error[run] += std::sqrt(open_.squares[run]);
  open_.expert = -1;
}

void ExpertWatch::add_common(const TileTask& task, const WatchedTile& tile) {
  const std::int64_t width = tile.activated.size(1);
  const std::size_t samples = sums_.sample_activations.size() / static_cast<std::size_t>(routed_.experts * width);
  for (std::int64_t i = 0; i < task.end - task.begin; ++i) {
    const auto row = static_cast<std::size_t>(task.begin + i);
    const std::int32_t of_task = sums_.task[static_cast<std::size_t>(sums_.common_tokens[row])];
    add_row(row_of(sums_.activation, of_task, task.expert), tile.activated, i);
    if (sums_.sample_rows[row] < 0) continue;
    const std::size_t sample = static_cast<std::size_t>(task.expert) * samples + static_cast<std::size_t>(sums_.sample_rows[row]);
    float* out = sums_.sample_activations.data() + sample * static_cast<std::size_t>(width);
    with_row(tile.activated, i, [out](const auto* values, std::int64_t n) { std::copy_n(values, n, out); });
  }
}

void ExpertWatch::finish_expert(const TileTask& task) const {
  if (!task.common || task.end < common_rows()) return;
  const ExpertWeights& expert = task.weights->weights();
  const at::Tensor down = on_host(expert.down);
  const at::Tensor bias = expert.down_bias.defined() ? expert.down_bias.to(at::kCPU, at::kDouble) : at::Tensor();
  for (std::int32_t of_task = 0; of_task < sums_.tasks; ++of_task) {
    double* output = row_of(sums_.output, of_task, task.expert);
    multiply_in_fp64(down, row_of(sums_.activation, of_task, task.expert), output);
    if (!bias.defined()) continue;
    const double tokens = sums_.all_tokens[static_cast<std::size_t>(of_task)];
    for (std::int64_t h = 0; h < down.size(0); ++h) output[h] += tokens * bias.const_data_ptr<double>()[h];
  }
}

void ExpertWatch::finish() {
  end_demonstration();
  const auto check = [&](std::span<const double> values, const char* what) {
    for (const double value : values) {
      if (std::isfinite(value)) continue;
      throw InvalidInput(fmt::format("{}: layer {} gives NaN or infinity in {}; run `moetrim verify --deep` on the checkpoint, or "
                                     "try --dtype fp32", context_.model.checkpoint->folder().string(), routed_.layer, what));
    }
  };
  check(sums_.logit_gram, "a router logit");
  check(sums_.weight_max, "an expert's weight");
  check(sums_.routed_activation, "an expert's activation");
  check(sums_.routed_output, "an expert's output");
  check(sums_.output_square, "an expert's output");
  check(sums_.activation, "an expert's activation");
  check(sums_.output, "an expert's output");
  check(sums_.quantisation_error, "an expert's output with quantised weights");
}

void sum_router(const LayerWeights& weights, const RoutedLayer& routed, const at::Tensor& x, VectorSums& sums, ThreadPool& pool) {
  constexpr std::int64_t kGramRows = 8;
  constexpr std::int64_t kInputRows = 1024;
  const std::int64_t experts = routed.experts;
  pool.run((experts + kGramRows - 1) / kGramRows, [&](std::int64_t block, int) {
    add_gram_rows(routed, sums, block * kGramRows, std::min(experts, (block + 1) * kGramRows));
  });
  mirror(sums, experts);
  std::mutex mutex;
  pool.run((routed.tokens + kInputRows - 1) / kInputRows, [&](std::int64_t block, int) {
    take_input_maxima(x, block * kInputRows, std::min(routed.tokens, (block + 1) * kInputRows), sums, mutex);
  });
  if (sums.weight_max.empty()) return;
  for (const at::Tensor& weight : {weights.router, weights.shared_gate_up, weights.shared_router}) {
    if (weight.defined()) take_maxima(sums.weight_max, column_maxima(weight));
  }
}

}  // namespace moetrim
