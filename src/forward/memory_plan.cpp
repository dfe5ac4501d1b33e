// What a run may hold in memory, and the groups of sequences that follow from it.

#include "forward/memory_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "forward/cuda_library.h"
#include "forward/layer_weights.h"
#include "forward/workplace.h"
#include "forward/numerics.h"
#include "moetrim/error.h"
#include "moetrim/machine.h"

namespace moetrim {

namespace {

/// LibTorch's libraries (140 MiB in use), a tokenizer of 150 000 words, thread stacks.
constexpr std::uint64_t kProgramBytes = 320ULL << 20;
/// Beside a device also its libraries and its context on the host.
constexpr std::uint64_t kDeviceProgramBytes = 1ULL << 30;

Precision precision_of(const RunOptions& options) {
  if (options.precision == "fp32") return Precision::fp32;
  if (options.precision == "bf16") return Precision::bf16;
  if (options.precision == "fp64") return Precision::fp64;
  throw UsageError(fmt::format("unknown dtype \"{}\"; expected fp32, bf16 or fp64", options.precision));
}

std::uint64_t budget_of(const RunOptions& options) {
  return options.max_memory > 0 ? options.max_memory : available_memory();
}

double gib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1ULL << 30); }

/// Tokens that a device holds beside its largest layer: they get half of what is left, groups of experts the other half.
std::int64_t device_tokens(const Model& model, const RunOptions& options, std::uint64_t token_bytes) {
  const at::Device device = cuda::open_device(options.device);
  const std::uint64_t usable = cuda::library().memory(device.index()).free_bytes / 10 * 9;
  ForwardOptions alone = forward_options(model, options);
  alone.threads = 2;
  alone.read_ahead_bytes = 0;
  const std::uint64_t fixed = Forward::weight_bytes(model, alone);
  if (fixed + 2 * token_bytes > usable) {
    throw OutOfResources(fmt::format("the weights in work need {:.2f} GiB on the device, which has {:.2f} GiB free; use a larger "
                                     "device, or --device cpu", gib(fixed), gib(usable)));
  }
  return static_cast<std::int64_t>((usable - fixed) / 2 / token_bytes);
}

}  // namespace

std::uint64_t block_expert_bytes(const Model& model) {
  std::uint64_t most = 0;
  for (const LayerTensors& layer : model.layer) {
    std::uint64_t bytes = 0;
    for (int e = 0; layer.sparse && e < model.experts; ++e) {
      for (const ByteRange& range : expert_group(layer, e)) bytes += range.size;
    }
    most = std::max(most, bytes);
  }
  return most;
}

ForwardOptions forward_options(const Model& model, const RunOptions& options) {
  ForwardOptions forward;
  forward.precision = precision_of(options);
  forward.device = options.device;
  forward.threads = options.threads;
  forward.reading = options.reading;
  const std::uint64_t budget = budget_of(options);
  const std::uint64_t share = std::clamp<std::uint64_t>(budget / 16, 32ULL << 20, 1ULL << 30);
  forward.read_ahead_bytes = std::min(share, block_expert_bytes(model));
  forward.drop_page_cache = model.checkpoint->total_bytes() > budget / 2;
  return forward;
}

std::uint64_t forward_token_bytes(const Model& model, const RunOptions& options) {
  return Forward::bytes_per_token(model, precision_of(options));
}

std::uint64_t tile_bytes(const Model& model, const RunOptions& options, std::int64_t longest) {
  // Values of a token that a thread holds: norms and sums; queries, keys and values, turned and joined; an MLP's halves.
  const auto width = std::max({model.expert_width, model.dense_width, model.shared_width});
  const auto values = 6 * model.hidden + 5 * model.heads * model.head_dim + 3 * width + model.experts;
  const std::uint64_t bytes = precision_of(options) == Precision::fp64 ? 8 : 4;
  const auto threads = static_cast<std::uint64_t>(options.threads > 0 ? options.threads : usable_cores());
  return threads * bytes * static_cast<std::uint64_t>(std::max(longest, kTileTokens) * values);
}

std::uint64_t head_bytes(const Model& model, const RunOptions& options, std::uint64_t rows) {
  const std::uint64_t of_row = static_cast<std::uint64_t>(model.hidden) * 2 * matrix_element_bytes(precision_of(options));
  return static_cast<std::uint64_t>(model.vocabulary) * (of_row + rows * 4);
}

MemoryPlan plan_memory(const Model& model, const RunOptions& options, std::uint64_t token_bytes, std::uint64_t further_bytes) {
  MemoryPlan plan;
  plan.budget_bytes = budget_of(options);
  const std::uint64_t program = kProgramBytes + (options.device == "cpu" ? 0 : kDeviceProgramBytes);
  plan.fixed_bytes = program + Forward::weight_bytes(model, forward_options(model, options)) + further_bytes;
  plan.token_bytes = token_bytes;
  if (plan.fixed_bytes + plan.token_bytes > plan.budget_bytes) {
    throw OutOfResources(fmt::format("the weights in work alone need {:.2f} GiB, the memory budget is {:.2f} GiB; raise "
                                     "--max-memory", gib(plan.fixed_bytes), gib(plan.budget_bytes)));
  }
  plan.group_tokens = static_cast<std::int64_t>((plan.budget_bytes - plan.fixed_bytes) / plan.token_bytes);
  if (options.device != "cpu") plan.group_tokens = std::min(plan.group_tokens, device_tokens(model, options, token_bytes));
  return plan;
}

std::vector<SequenceGroup> cut_groups(std::span<const std::int64_t> lengths, std::int64_t group_tokens) {
  std::vector<SequenceGroup> groups;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (groups.empty() || groups.back().tokens + lengths[i] > group_tokens) groups.push_back({i, i, 0});
    groups.back().last = i + 1;
    groups.back().tokens += lengths[i];
  }
  return groups;
}

}  // namespace moetrim
