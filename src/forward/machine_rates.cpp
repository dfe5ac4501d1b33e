// What a forward pass multiplies, and how fast this machine multiplies and reads: for estimates.

#include <algorithm>
#include <atomic>
#include <chrono>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "forward/layer_weights.h"
#include "forward/linear.h"
#include "forward/memory_plan.h"
#include "forward/workplace.h"
#include "moetrim/forward.h"

namespace moetrim {

namespace {

using Clock = std::chrono::steady_clock;

/// How long is measured, for multiplying and for reading.
constexpr std::chrono::milliseconds kMeasured{50};

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// Products of a tile of an expert, by every thread at once.
double measure_products(const Model& model, const ForwardOptions& options) {
  const c10::InferenceMode no_autograd;
  Workplace place(model, options);
  const auto type = at::TensorOptions().dtype(place.numerics.tile()).device(place.device);
  const at::Tensor x = at::ones({kTileTokens, model.hidden}, type);
  const at::Tensor weight = at::ones({2 * model.expert_width, model.hidden}, type);
  std::vector<at::Tensor> outputs(static_cast<std::size_t>(place.pool.size()));
  const auto multiply = [&](int worker) {
    at::Tensor& out = outputs[static_cast<std::size_t>(worker)];
    linear(x, weight, {}, out)[0][0].item<double>();  // a device is waited for
  };
  place.pool.run(place.pool.size(), [&](std::int64_t, int worker) { multiply(worker); });
  std::atomic<std::int64_t> products{0};
  const auto begin = Clock::now();
  place.pool.run(place.pool.size(), [&](std::int64_t, int worker) {
    for (; Clock::now() - begin < kMeasured; ++products) multiply(worker);
  });
  const auto each = 2.0 * static_cast<double>(x.numel()) * static_cast<double>(weight.size(0));
  return each * static_cast<double>(products) / seconds_since(begin);
}

/// From the middle of the checkpoint on, the way the run will read.
double measure_reading(const Checkpoint& checkpoint, PageCache cache) {
  const auto& tensors = checkpoint.tensors();
  BlockReader reader(checkpoint, cache);
  const auto begin = Clock::now();
  auto tensor = tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() / 2);
  do {
    for (; tensor != tensors.end() && reader.hungry(); ++tensor) reader.add({&*tensor, 0, tensor->size});
  } while (!reader.next().empty() && Clock::now() - begin < kMeasured);
  return static_cast<double>(reader.bytes_read()) / seconds_since(begin);
}

}  // namespace

double Forward::operations(const Model& model, std::span<const std::int64_t> lengths, int first) {
  double tokens = 0;
  double pairs = 0;  // of a token and one that it sees
  for (const auto length : lengths) {
    tokens += static_cast<double>(length);
    pairs += static_cast<double>(length) * static_cast<double>(length + 1) / 2;
  }
  double sum = 0;
  for (std::int64_t l = first; l < model.layers; ++l) {
    const LayerTensors& layer = model.layer[static_cast<std::size_t>(l)];
    double active = 0;  // elements of matrices that a token is multiplied with
    for (const Weight& weight : layer.by_role) {
      const bool for_all = weight && where_of(weight.rule->role) != Where::experts;
      if (for_all && weight.rule->axes.size() == 2) active += static_cast<double>(element_count(model, weight));
    }
    if (layer.sparse) active += 3.0 * static_cast<double>(model.experts_per_token * model.expert_width * model.hidden);
    sum += 2 * active * tokens;
    if (!layer.delta_net) sum += 4 * static_cast<double>(model.heads * model.head_dim) * pairs;
  }
  return sum;
}

double MachineRates::seconds(double operations, std::uint64_t bytes) const {
  // Attention, rounding, statistics and what the threads wait for each other: measured, see docs/performance.md.
  constexpr double kShareOfProducts = 0.75;
  return std::max(operations / (kShareOfProducts * operations_per_second), static_cast<double>(bytes) / bytes_per_second);
}

MachineRates measure_rates(const Model& model, const RunOptions& options) {
  const ForwardOptions forward = forward_options(model, options);
  return {.operations_per_second = measure_products(model, forward),
          .bytes_per_second =
              measure_reading(*model.checkpoint, forward.drop_page_cache ? PageCache::bypass : PageCache::use)};
}

}  // namespace moetrim
