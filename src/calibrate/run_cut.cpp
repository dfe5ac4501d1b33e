// How a calibration's tokens are cut into groups, and what the run will take.

#include "calibrate/run_cut.h"

#include <algorithm>

#include "calibrate/request.h"
#include "calibrate/token_groups.h"
#include "calibrate/vector_measure.h"
#include "forward/row_importance.h"
#include "moetrim/machine.h"

namespace moetrim {

namespace {

/// Rows of logits, and what is made of them, that a thread holds where the loss is taken.
constexpr std::uint64_t kHeldRows = 4 * 64;

std::uint64_t thread_count(const CalibrateOptions& options) {
  return static_cast<std::uint64_t>(options.threads > 0 ? options.threads : usable_cores());
}

/// What the statistics on request take beside the tokens: the sums, and in every thread a second tile and two forms of an expert
/// whose weights are quantised.
std::uint64_t further_vector_memory(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  if (!options.vectors) return 0;
  const auto& vectors = *options.vectors;
  std::uint64_t bytes = vector_memory(model, tasks.size(), vectors);
  const auto expert = static_cast<std::uint64_t>(model.expert_width * model.hidden);
  bytes += thread_count(options) * 2 * 2 * expert * 4;  // magnitudes of a gate_up matrix; down as it is multiplied in fp64
  if (vectors.all_experts || vectors.quantisation) bytes += tile_bytes(model, options, 0);
  if (vectors.quantisation) bytes += thread_count(options) * 2 * 2 * expert * 4;
  return bytes;
}

/// Multiply-adds times two of running every expert, and of running experts with quantised weights.
double vector_operations(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  if (!options.vectors) return 0;
  const double matrix = 2.0 * static_cast<double>(model.expert_width * model.hidden);
  double common = 0, counted = 0;
  for (const Source& source : demonstrations_of(tasks, options.share)) {
    const auto range = counted_range(*source.demonstration, options.count);
    const std::int64_t tokens = range.second - range.first;
    const std::int64_t limit = options.vectors->all_experts_tokens;
    counted += static_cast<double>(tokens);
    common += static_cast<double>(limit > 0 ? std::min(limit, tokens) : tokens);
  }
  double of_layer = 0;
  if (options.vectors->all_experts) of_layer += common * static_cast<double>(model.experts) * 2 * matrix;
  if (options.vectors->quantisation) of_layer += counted * static_cast<double>(model.experts_per_token) * kQuantisationBits * 3 * matrix;
  return of_layer * static_cast<double>(model.moe_layers(options.mtp).size());
}

/// What a layer's linear layers read besides its experts, and that of an expert, in values.
std::uint64_t input_widths(const Model& model) {
  const LatentSizes& latent = model.latent;
  const std::int64_t heads = std::max(model.heads * std::max(model.head_dim, latent.value), model.length(Axis::delta_values));
  const std::int64_t latents = latent.query_rank + latent.rank + model.heads * (latent.plain + latent.rank);
  const std::int64_t down = std::max(model.dense_width, model.shared_width);
  return static_cast<std::uint64_t>(5 * model.hidden + heads + down + (latent.rank > 0 ? latents : 0));
}

/// Of LinearInputs of one layer.
std::uint64_t input_file_bytes(const Model& model, std::size_t tasks) {
  const auto expert = static_cast<std::uint64_t>(model.experts * (model.hidden + model.expert_width + 1));
  return tasks * (expert + input_widths(model) + 1) * sizeof(double);
}

/// The sums, and those of the sequences in every thread's tile, as far as they are not very short.
std::uint64_t input_memory(const Model& model, std::size_t tasks, const CalibrateOptions& options) {
  constexpr std::uint64_t kSequencesInTile = 32;
  if (!options.inputs) return 0;
  const std::uint64_t of_tile = kSequencesInTile * input_widths(model) * sizeof(double);
  return input_file_bytes(model, tasks) + 2 * thread_count(options) * of_tile;
}

/// Of RowStatistics of one layer.
std::uint64_t row_file_bytes(const Model& model, std::size_t tasks) {
  return tasks * static_cast<std::uint64_t>(model.experts * (2 * model.expert_width + model.hidden)) * sizeof(double);
}

/// Sums of a layer, and in every thread an expert's factors, what they leave, and the gradients by its matrices.
std::uint64_t row_memory(const Model& model, std::size_t tasks, const CalibrateOptions& options, Precision precision) {
  if (options.row_rank == 0) return 0;
  return 2 * row_file_bytes(model, tasks) + thread_count(options) * row_importance_bytes(model, precision);
}

/// Multiply-adds times two of the gradients by the matrices, and of the factors of every expert in every group.
double row_operations(const Model& model, const CalibrateOptions& options, std::int64_t tokens, std::size_t groups) {
  if (options.row_rank == 0) return 0;
  const double matrix = 2.0 * static_cast<double>(model.expert_width * model.hidden);
  const double products = static_cast<double>(tokens * model.experts_per_token) * 3 * matrix;
  const double factors = static_cast<double>(groups) * static_cast<double>(model.experts) * factor_operations(model);
  return (products + factors) * static_cast<double>(model.moe_layers().size());
}

/// Of experts that stay and were not held, in all layers, at most.
std::uint64_t reread_bytes(const Model& model, const CalibrateOptions& options, std::uint64_t held) {
  const std::uint64_t all = block_expert_bytes(model);
  if (!options.sequential || held >= all) return 0;
  const auto keep = static_cast<std::uint64_t>(options.sequential->keep);
  const std::uint64_t kept = all / static_cast<std::uint64_t>(model.experts) * keep;
  return std::min(kept, all - held) * model.moe_layers().size();
}

/// Multiply-adds times two of the blocks' second runs: routed experts alone.
double second_run_operations(const Model& model, const CalibrateOptions& options, std::int64_t tokens) {
  if (!options.sequential) return 0;
  const double matrix = 2.0 * static_cast<double>(model.expert_width * model.hidden);
  return static_cast<double>(tokens * model.experts_per_token) * 3 * matrix * static_cast<double>(model.moe_layers().size());
}

}  // namespace

std::uint64_t held_expert_bytes(const Model& model, const MemoryPlan& plan, std::int64_t tokens) {
  const std::uint64_t used = plan.fixed_bytes + plan.token_bytes * static_cast<std::uint64_t>(tokens);
  return std::min(block_expert_bytes(model), plan.budget_bytes - std::min(plan.budget_bytes, used));
}

MemoryPlan calibration_memory(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  const std::uint64_t forward = forward_token_bytes(model, options) + (options.vectors ? kVectorTokenBytes : 0);
  const auto longest = longest_demonstration(tasks, options.share);
  const std::uint64_t tiles = tile_bytes(model, options, longest) + further_vector_memory(model, tasks, options) +
                              input_memory(model, tasks.size(), options);
  if (!options.second_order) {
    const bool blocks = options.mtp && model.mtp_layers > 0;  // they normalise with the head's norm, which comes with it
    return plan_memory(model, options, forward, tiles + (blocks ? head_bytes(model, options, 0) : 0));
  }
  const Precision precision = calibration_forward(model, options).precision;
  // While a segment runs again, the gradient waits beside its hidden states.
  const std::uint64_t gradient = static_cast<std::uint64_t>(model.hidden) * (precision == Precision::fp64 ? 8 : 4);
  const std::uint64_t threads = thread_count(options);
  const std::uint64_t sums = (3 * tasks.size() + 2) * static_cast<std::uint64_t>(model.experts * model.expert_width) * 8;
  return plan_memory(model, options, std::max(forward + gradient, Backward::bytes_per_token(model, precision)),
                     tiles + 2 * sums + row_memory(model, tasks.size(), options, precision) +
                         std::max(threads * Backward::tape_bytes(model, precision, longest),
                                  head_bytes(model, options, threads * kHeldRows)));
}

RunCut cut_run(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
              const std::filesystem::path& output) {
  RunCut cut{.group_tokens = calibration_memory(model, tasks, options).group_tokens};
  if (!options.second_order) return cut;
  std::int64_t tokens = 0;
  for (const Source& source : demonstrations_of(tasks, options.share)) {
    tokens += static_cast<std::int64_t>(source.demonstration->ids.size());
  }
  cut.boundaries = plan_boundaries(model, options, output, std::min(cut.group_tokens, tokens), longest_demonstration(tasks, options.share));
  cut.group_tokens = std::min(cut.group_tokens, cut.boundaries.group_tokens);
  return cut;
}

CalibrateEstimate estimate_calibration(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
                                       const std::filesystem::path& output) {
  check_request(model, tasks, options);
  MemoryPlan plan = calibration_memory(model, tasks, options);
  const RunCut cut = cut_run(model, tasks, options, output);
  plan.group_tokens = cut.group_tokens;
  const auto groups = make_groups(tasks, options, plan);
  CalibrateEstimate estimate;
  std::int64_t largest = 0;
  std::vector<std::int64_t> lengths;
  for (const TokenGroup& group : groups) {
    const auto tokens = static_cast<std::int64_t>(group.batch.ids.size());
    estimate.tokens += tokens;
    largest = std::max(largest, tokens);
    for (const Sequence& sequence : group.batch.sequences) lengths.push_back(sequence.length);
  }
  estimate.groups = static_cast<int>(groups.size());
  estimate.peak_memory_bytes = plan.fixed_bytes + plan.token_bytes * static_cast<std::uint64_t>(largest);
  // The reverse sweep reads the layers again, and once more where boundaries are missing.
  const std::uint64_t reads = !options.second_order ? 1 : cut.boundaries.step > 1 ? 3 : 2;
  estimate.read_bytes = model.checkpoint->total_bytes() * groups.size() * reads;
  if (options.sequential) {
    const std::uint64_t held = held_expert_bytes(model, plan, largest);
    estimate.peak_memory_bytes += held;
    estimate.reread_bytes = reread_bytes(model, options, held);
    estimate.read_bytes += estimate.reread_bytes;
  }
  const auto experts = static_cast<std::uint64_t>(model.experts);
  const std::uint64_t layer_bytes = tasks.size() * 8 * (kStatCount * kSlices * experts + 2 * experts * experts);
  const std::uint64_t state_bytes = static_cast<std::uint64_t>(largest) * static_cast<std::uint64_t>(model.hidden) * 4;
  const auto traced = static_cast<std::uint64_t>(std::min(options.trace_tokens, largest));
  const std::uint64_t trace_bytes = traced * (experts * 4 + static_cast<std::uint64_t>(model.experts_per_token) * 16 + 8);
  estimate.disk_bytes = model.moe_layers(options.mtp).size() * (2 * layer_bytes + trace_bytes) + 2 * state_bytes;
  if (options.second_order) {
    estimate.boundary_step = cut.boundaries.step;
    estimate.boundary_bytes = cut.boundaries.token_bytes * static_cast<std::uint64_t>(largest);
    const auto atoms = experts * static_cast<std::uint64_t>(model.expert_width);
    estimate.disk_bytes += estimate.boundary_bytes + 2 * model.moe_layers().size() * (3 * tasks.size() + 2) * atoms * 8;
    if (options.row_rank > 0) estimate.disk_bytes += 2 * model.moe_layers().size() * row_file_bytes(model, tasks.size());
  }
  const double sweeps = !options.second_order ? 1 : cut.boundaries.step > 1 ? 4 : 3;
  if (options.vectors) {
    estimate.disk_bytes += (model.moe_layers(options.mtp).size() + 1) * vector_file_bytes(model, tasks.size(), *options.vectors);
  }
  if (options.inputs) {
    const auto layers = static_cast<std::uint64_t>(model.layers + (options.mtp ? model.mtp_layers : 0));
    estimate.disk_bytes += (layers + 1) * input_file_bytes(model, tasks.size());
  }
  estimate.operations = sweeps * Forward::operations(model, lengths) + vector_operations(model, tasks, options) +
                        row_operations(model, options, estimate.tokens, groups.size()) +
                        second_run_operations(model, options, estimate.tokens);
  return estimate;
}

}  // namespace moetrim
