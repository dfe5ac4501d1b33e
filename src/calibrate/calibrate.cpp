// Calibration: demonstrations through a checkpoint, layer by layer, to statistics.

#include "moetrim/calibrate.h"

#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "calibrate/observe.h"
#include "calibrate/partial_run.h"
#include "calibrate/request.h"
#include "calibrate/reverse_sweep.h"
#include "calibrate/run_cut.h"
#include "calibrate/token_groups.h"
#include "calibrate/trace.h"
#include "calibrate/vector_measure.h"
#include "moetrim/error.h"
#include "moetrim/forward.h"
#include "moetrim/input_statistics.h"

namespace moetrim {

namespace {

/// One calibration: the groups in turn, each through all layers, and back where second-order statistics are wanted.
class Calibration {
 public:
  /// @param manifest  that will be written
  Calibration(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options, const StatisticsManifest& manifest,
              PartialRun& partial)
      : model_(model), task_list_(tasks), options_(options), manifest_(manifest), forward_options_(calibration_forward(model, options)),
        tasks_(static_cast<int>(tasks.size())), partial_(partial) {
    MemoryPlan plan = calibration_memory(model, tasks, options);
    plan.group_tokens = partial.cut().group_tokens;
    groups_ = make_groups(tasks, options, plan);
    for (const TokenGroup& group : groups_) total_ += static_cast<std::int64_t>(group.batch.ids.size()) * steps();
    if (options.sequential) forward_options_.hold_bytes = held_expert_bytes(model, plan, group_tokens(0));
  }

  int groups() const { return static_cast<int>(groups_.size()); }

  /// @return the loss of every task, in nats; empty without second order.
  std::vector<double> run() {
    RunState state = partial_.load_state().value_or(RunState{});
    for (int g = 0; g < state.group; ++g) done_ += group_tokens(g) * steps();
    while (state.group < groups()) {
      at::Tensor hidden = run_forward(state);
      if (options_.second_order) run_reverse(state, std::move(hidden));
      partial_.finish_group(state);
      state = RunState{.group = state.group + 1, .layer = 0, .loss = std::move(state.loss)};
    }
    return state.loss;
  }

 private:
  std::int64_t layers() const { return model_.layers + (options_.mtp ? model_.mtp_layers : 0); }
  /// The reverse sweep takes about twice the time of a forward one.
  std::int64_t reverse_steps() const { return options_.second_order ? 2 * (model_.layers - model_.moe_layers().front()) : 0; }
  std::int64_t steps() const { return layers() + reverse_steps(); }

  std::int64_t group_tokens(int group) const {
    return static_cast<std::int64_t>(groups_[static_cast<std::size_t>(group)].batch.ids.size());
  }

  void made_progress(std::int64_t tokens) {
    done_ += tokens;
    if (options_.progress) options_.progress(done_, total_);
  }

  /// @return the hidden states after the last layer; undefined when the state is beyond it.
  at::Tensor run_forward(RunState& state) {
    const TokenGroup& group = groups_[static_cast<std::size_t>(state.group)];
    const auto tokens = group_tokens(state.group);
    if (state.sweep == Sweep::reverse) {
      done_ += tokens * (steps() - 2 * (state.layer + 1 - model_.moe_layers().front()));
      return {};
    }
    Forward forward(model_, forward_options_);
    if (state.layer == 0) {
      forward.begin(group.batch);
      if (traces(state.group)) write_trace_tokens(trace_folder(), group, traced(group));
      if (partial_.cut().boundaries.keeps(0)) partial_.save_boundary(state.group, 0, forward.hidden());
    } else {
      forward.resume(group.batch, state.layer, state.hidden);
      state.hidden.reset();
      done_ += tokens * state.layer;
    }
    RoutedLayer routed;
    while (!forward.done()) {
      run_layer(forward, state, group, routed);
      state.layer = forward.next_layer();
      made_progress(tokens);
      if (forward.done() && !options_.second_order) break;
      state.hidden = forward.hidden();
      partial_.save_state(state);
      state.hidden.reset();
      stop_if_asked(state);
    }
    return forward.hidden();
  }

  void run_layer(Forward& forward, RunState& state, const TokenGroup& group, RoutedLayer& routed) {
    const int layer = forward.next_layer();
    const auto vectors = measure_vectors(state.group, group, layer);
    const auto observe = [&] {
      if (vectors) partial_.write_vectors(state.group, vectors->finish(routed));
      return measure(state, group, routed);
    };
    std::optional<LinearInputs> inputs = earlier_inputs(state.group, layer);
    VectorSums inputs_alone;
    VectorSums* sums = vectors ? &vectors->sums() : inputs ? &inputs_alone : nullptr;
    if (inputs) sums->inputs = &*inputs;
    if (prunes(layer)) {
      forward.run_layer(routed, sums, [&](const RoutedLayer&) { return pruned(observe()); });
    } else {
      forward.run_layer(routed, sums);
      if (routed.tokens > 0) observe();
    }
    if (inputs) partial_.write_inputs(state.group, *inputs);
  }

  /// Whether later layers see what this one puts out without the experts that go.
  bool prunes(int layer) const { return options_.sequential && layer < model_.layers && layer + 1 < layers(); }

  LayerMask pruned(const LayerStatistics& layer) const {
    const SequentialCalibration& sequential = *options_.sequential;
    LayerMask mask{.kept = sequential.choose(manifest_, layer), .regroup = sequential.regroup};
    if (std::ssize(mask.kept) != model_.experts) throw Error("what stays of a layer was not said of every expert");
    return mask;
  }

  void run_reverse(RunState& state, at::Tensor hidden) {
    const TokenGroup& group = groups_[static_cast<std::size_t>(state.group)];
    const ReverseSweep sweep(model_, forward_options_, manifest_, partial_, [&](const RunState& passed) {
      made_progress(2 * group_tokens(passed.group));
      stop_if_asked(passed);
    });
    if (state.sweep == Sweep::forward) sweep.turn_round(state, group, hidden);
    hidden.reset();
    sweep.run(state, group);
  }

  /// The last tokens of a sequence have no token that a multi-token-prediction block could look at.
  std::vector<MeasuredSequence> measured(const TokenGroup& group, int layer) const {
    std::vector<MeasuredSequence> sequences = group.sequences;
    if (layer < model_.layers) return sequences;
    const std::int64_t ahead = layer - model_.layers + 1;
    for (MeasuredSequence& sequence : sequences) {
      sequence.count_end = std::max(sequence.count_begin, std::min(sequence.count_end, sequence.begin + sequence.length - ahead));
    }
    return sequences;
  }

  LayerStatistics measure(RunState& state, const TokenGroup& group, const RoutedLayer& routed) {
    const bool block = routed.layer >= model_.layers;
    if (state.previous_layer >= 0 && !block) {
      LayerStatistics before = partial_.read_layer(state.group, state.previous_layer);
      // From the group before, not from the file itself: a kill after writing it must not count this group twice.
      before.transitions = earlier(state.group, state.previous_layer).transitions;
      observe_transitions(state.previous_ids, routed, group.sequences, before);
      partial_.write_layer(state.group, before);
    }
    LayerStatistics layer = earlier(state.group, routed.layer);
    if (routed.layer == model_.moe_layers().front()) observe_prompts(routed, group.sequences, layer);
    observe_layer(routed, measured(group, routed.layer), ObserveOptions{.tcess_top_k = options_.tcess_top_k, .tcess_threshold = options_.tcess_threshold}, layer);
    partial_.write_layer(state.group, layer);
    if (traces(state.group)) write_trace_layer(trace_folder(), routed, traced(group));
    state.previous_layer = routed.layer;
    state.previous_ids = routed.ids;
    return layer;
  }

  /// What is measured of a layer on request; null when nothing is.
  std::unique_ptr<VectorMeasure> measure_vectors(int number, const TokenGroup& group, int layer) const {
    if (!manifest_.vectors || !model_.layer[static_cast<std::size_t>(layer)].sparse) return nullptr;
    ExpertVectors before = number > 0 ? partial_.read_vectors(number - 1, layer, manifest_)
                                      : ExpertVectors(layer, tasks_, static_cast<int>(model_.experts), *manifest_.vectors);
    return std::make_unique<VectorMeasure>(task_list_, *manifest_.vectors, group, measured(group, layer), std::move(before), number == 0);
  }

  /// Of any layer; nothing when inputs are not measured.
  std::optional<LinearInputs> earlier_inputs(int number, int layer) const {
    if (!has_inputs(manifest_)) return std::nullopt;
    return number > 0 ? partial_.read_inputs(number - 1, layer, manifest_) : empty_inputs(manifest_, layer);
  }

  /// What the groups before this one have summed up: adding goes on where they stopped, so that the result does not depend
  /// on how the tokens were grouped.
  LayerStatistics earlier(int group, int layer) const {
    if (group > 0) return partial_.read_layer(group - 1, layer);
    LayerStatistics empty(layer, tasks_, static_cast<int>(model_.experts));
    if (layer == model_.moe_layers().front()) empty.keep_prompts();
    return empty;
  }

  void stop_if_asked(const RunState& state) const {
    if (options_.stop == nullptr || !*options_.stop) return;
    throw Interrupted(fmt::format("stopped before layer {} of {}{}; repeat the command to go on from there", state.layer, layers(),
                                  state.sweep == Sweep::reverse ? ", on the way back" : ""));
  }

  /// The trace covers the first group only: it is bounded, and meant for plots.
  bool traces(int group) const { return options_.trace_tokens > 0 && group == 0; }
  std::int64_t traced(const TokenGroup& group) const {
    return std::min(options_.trace_tokens, static_cast<std::int64_t>(group.batch.ids.size()));
  }
  std::filesystem::path trace_folder() const { return partial_.folder() / "trace"; }

  const Model& model_;
  const std::vector<Task>& task_list_;
  const CalibrateOptions& options_;
  const StatisticsManifest& manifest_;
  ForwardOptions forward_options_;
  int tasks_;
  PartialRun& partial_;
  std::vector<TokenGroup> groups_;
  std::int64_t done_ = 0, total_ = 0;
};

}  // namespace

StatisticsManifest calibrate(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
                             const std::filesystem::path& output) {
  check_request(model, tasks, options);
  StatisticsManifest manifest = calibration_manifest(model, tasks, options);
  nlohmann::ordered_json key = manifest_to_json(manifest);
  key["trace_tokens"] = options.trace_tokens;
  PartialRun partial(output, key, cut_run(model, tasks, options, output));
  Calibration calibration(model, tasks, options, manifest, partial);
  const std::vector<double> loss = calibration.run();
  for (std::size_t task = 0; task < loss.size(); ++task) manifest.tasks[task].loss = loss[task];
  partial.finish(manifest, calibration.groups());
  return manifest;
}

void run_forward_only(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  const auto groups = make_groups(tasks, options, calibration_memory(model, tasks, options));
  Forward forward(model, calibration_forward(model, options));
  RoutedLayer routed;
  std::int64_t total = 0;
  std::int64_t done = 0;
  for (const TokenGroup& group : groups) total += static_cast<std::int64_t>(group.batch.ids.size()) * model.layers;
  for (const TokenGroup& group : groups) {
    forward.begin(group.batch);
    while (!forward.done()) {
      forward.run_layer(routed);
      done += static_cast<std::int64_t>(group.batch.ids.size());
      if (options.progress) options.progress(done, total);
      if (options.stop != nullptr && *options.stop) throw Interrupted("stopped");
    }
  }
}

}  // namespace moetrim
