// Calibration: demonstrations through a checkpoint, layer by layer, to statistics.

#include "moetrim/calibrate.h"

#include <algorithm>

#include <fmt/format.h>

#include "calibrate/observe.h"
#include "calibrate/partial_run.h"
#include "calibrate/token_groups.h"
#include "calibrate/trace.h"
#include "moetrim/error.h"
#include "moetrim/forward.h"

namespace moetrim {

namespace {

ObserveOptions observe_options(const CalibrateOptions& options) {
  return {.tcess_top_k = options.tcess_top_k, .tcess_threshold = options.tcess_threshold};
}

/// All that can be refused without running anything.
void check_request(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  if (tasks.empty()) throw UsageError("no task to measure; give at least one --task FILE.jsonl");
  if (options.mtp && model.mtp_layers > 0 && model.mtp_experts != model.experts) {
    throw InvalidInput(fmt::format("{}: the multi-token-prediction block has {} experts, the layers have {}; they cannot be pruned "
                                   "together, choose --mtp keep or drop", model.checkpoint->folder().string(), model.mtp_experts,
                                   model.experts));
  }
  if (options.tcess_top_k < 1 || options.tcess_top_k > model.experts) {
    throw UsageError(fmt::format("--tcess-top-k must be from 1 to {}, got {}", model.experts, options.tcess_top_k));
  }
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (tasks[i].name != tasks[j].name) continue;
      throw UsageError(fmt::format("{} and {} would both be task \"{}\"; rename one", tasks[j].file.string(),
                                   tasks[i].file.string(), tasks[i].name));
    }
    const auto counts = [&](const Demonstration& d) {
      const auto range = counted_range(d, options.count);
      return range.second > range.first;
    };
    if (std::none_of(tasks[i].demonstrations.begin(), tasks[i].demonstrations.end(), counts)) {
      throw InvalidInput(fmt::format("{}: no token counts; every demonstration is all prompt or all response, choose another "
                                     "--count", tasks[i].file.string()));
    }
  }
}

ForwardOptions forward_of(const Model& model, const CalibrateOptions& options) {
  ForwardOptions forward = forward_options(model, options);
  forward.mtp = options.mtp;
  return forward;
}

/// One calibration: the groups in turn, each through all layers.
class Calibration {
 public:
  Calibration(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options, PartialRun& partial)
      : model_(model), options_(options), tasks_(static_cast<int>(tasks.size())), partial_(partial) {
    MemoryPlan plan = plan_memory(model, options);
    plan.group_tokens = partial.group_tokens();
    groups_ = make_groups(tasks, options, plan);
    for (const TokenGroup& group : groups_) total_ += static_cast<std::int64_t>(group.batch.ids.size()) * layers();
  }

  int groups() const { return static_cast<int>(groups_.size()); }

  void run() {
    RunState state = partial_.load_state().value_or(RunState{});
    for (int g = 0; g < state.group; ++g) done_ += group_tokens(g) * layers();
    if (state.group >= groups()) return;
    Forward forward(model_, forward_of(model_, options_));
    for (; state.group < groups(); state = RunState{.group = state.group + 1, .layer = 0}) {
      run_group(forward, state);
      partial_.finish_group(state.group);
    }
  }

 private:
  std::int64_t layers() const { return model_.layers + (options_.mtp ? model_.mtp_layers : 0); }

  std::int64_t group_tokens(int group) const {
    return static_cast<std::int64_t>(groups_[static_cast<std::size_t>(group)].batch.ids.size());
  }

  void run_group(Forward& forward, RunState& state) {
    const TokenGroup& group = groups_[static_cast<std::size_t>(state.group)];
    if (state.layer == 0) {
      forward.begin(group.batch);
      if (traces(state.group)) write_trace_tokens(trace_folder(), group, traced(group));
    } else {
      forward.resume(group.batch, state.layer, state.hidden);
      state.hidden.reset();
      done_ += group_tokens(state.group) * state.layer;
    }
    RoutedLayer routed;
    while (!forward.done()) {
      forward.run_layer(routed);
      if (routed.tokens > 0) measure(state, group, routed);
      state.layer = forward.next_layer();
      done_ += group_tokens(state.group);
      if (options_.progress) options_.progress(done_, total_);
      if (forward.done()) break;
      state.hidden = forward.hidden();
      partial_.save_state(state);
      state.hidden.reset();
      stop_if_asked(state);
    }
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

  void measure(RunState& state, const TokenGroup& group, const RoutedLayer& routed) {
    const bool block = routed.layer >= model_.layers;
    if (state.previous_layer >= 0 && !block) {
      LayerStatistics before = partial_.read_layer(state.group, state.previous_layer);
      // From the group before, not from the file itself: a kill after writing it must not count this group twice.
      before.transitions = earlier(state.group, state.previous_layer).transitions;
      observe_transitions(state.previous_ids, routed, group.sequences, before);
      partial_.write_layer(state.group, before);
    }
    LayerStatistics layer = earlier(state.group, routed.layer);
    observe_layer(routed, measured(group, routed.layer), observe_options(options_), layer);
    partial_.write_layer(state.group, layer);
    if (traces(state.group)) write_trace_layer(trace_folder(), routed, traced(group));
    state.previous_layer = routed.layer;
    state.previous_ids = routed.ids;
  }

  /// What the groups before this one have summed up: adding goes on where they stopped, so that the result does not depend
  /// on how the tokens were grouped.
  LayerStatistics earlier(int group, int layer) const {
    if (group > 0) return partial_.read_layer(group - 1, layer);
    return LayerStatistics(layer, tasks_, static_cast<int>(model_.experts));
  }

  void stop_if_asked(const RunState& state) const {
    if (options_.stop == nullptr || !*options_.stop) return;
    throw Interrupted(fmt::format("stopped before layer {} of {}; repeat the command to go on from there", state.layer,
                                  layers()));
  }

  /// The trace covers the first group only: it is bounded, and meant for plots.
  bool traces(int group) const { return options_.trace_tokens > 0 && group == 0; }
  std::int64_t traced(const TokenGroup& group) const {
    return std::min(options_.trace_tokens, static_cast<std::int64_t>(group.batch.ids.size()));
  }
  std::filesystem::path trace_folder() const { return partial_.folder() / "trace"; }

  const Model& model_;
  const CalibrateOptions& options_;
  int tasks_;
  PartialRun& partial_;
  std::vector<TokenGroup> groups_;
  std::int64_t done_ = 0, total_ = 0;
};

}  // namespace

StatisticsManifest calibration_manifest(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  const ObserveOptions observe = observe_options(options);
  StatisticsManifest manifest;
  manifest.checkpoint_fingerprint = model.checkpoint->fingerprint();
  manifest.family = model.family->name;
  manifest.router = model.family->router.score == RouterScore::sigmoid ? "sigmoid" : "softmax";
  manifest.router_selects_by_logit = model.selects_by_logit();
  manifest.gates_normalised = model.normalise_gates;
  manifest.groups = {.count = static_cast<int>(model.groups),
                     .chosen = static_cast<int>(model.groups_chosen),
                     .rule = std::string(group_rule_name(model.group_rule))};
  manifest.layers = static_cast<int>(model.layers);
  manifest.mtp_layers = options.mtp ? static_cast<int>(model.mtp_layers) : 0;
  manifest.experts = static_cast<int>(model.experts);
  manifest.experts_per_token = static_cast<int>(model.experts_per_token);
  manifest.moe_layers = model.moe_layers(options.mtp);
  manifest.tcess_top_k = observe.tcess_top_k;
  manifest.tcess_threshold = observe.tcess_threshold;
  manifest.dtype = options.precision;
  manifest.count = options.count == Count::all ? "all" : options.count == Count::prompt ? "prompt" : "response";
  for (const Task& task : tasks) {
    StatisticsManifest::TaskFacts facts{.name = task.name,
                                        .digest = task.digest,
                                        .demonstrations = static_cast<std::int64_t>(task.demonstrations.size())};
    for (const Demonstration& demonstration : task.demonstrations) {
      const auto counted = counted_range(demonstration, options.count);
      facts.tokens += static_cast<std::int64_t>(demonstration.ids.size());
      facts.counted_tokens += counted.second - counted.first;
    }
    manifest.tasks.push_back(std::move(facts));
  }
  manifest.settings = options.settings;
  manifest.tool_version = options.tool_version;
  return manifest;
}

CalibrateEstimate estimate_calibration(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  check_request(model, tasks, options);
  const MemoryPlan plan = plan_memory(model, options);
  const auto groups = make_groups(tasks, options, plan);
  CalibrateEstimate estimate;
  std::int64_t largest = 0;
  for (const TokenGroup& group : groups) {
    const auto tokens = static_cast<std::int64_t>(group.batch.ids.size());
    estimate.tokens += tokens;
    largest = std::max(largest, tokens);
  }
  estimate.groups = static_cast<int>(groups.size());
  estimate.peak_memory_bytes = plan.fixed_bytes + plan.token_bytes * static_cast<std::uint64_t>(largest);
  estimate.read_bytes = model.checkpoint->total_bytes() * groups.size();
  const auto experts = static_cast<std::uint64_t>(model.experts);
  const std::uint64_t layer_bytes = tasks.size() * 8 * (kStatCount * kSlices * experts + 2 * experts * experts);
  const std::uint64_t state_bytes = static_cast<std::uint64_t>(largest) * static_cast<std::uint64_t>(model.hidden) * 4;
  const auto traced = static_cast<std::uint64_t>(std::min(options.trace_tokens, largest));
  const std::uint64_t trace_bytes = traced * (experts * 4 + static_cast<std::uint64_t>(model.experts_per_token) * 16 + 8);
  estimate.disk_bytes = model.moe_layers(options.mtp).size() * (2 * layer_bytes + trace_bytes) + 2 * state_bytes;
  const double active = 2.0 * static_cast<double>(model.hidden) *
                        (static_cast<double>(model.heads + model.key_value_heads) * 2 * static_cast<double>(model.head_dim) +
                         3.0 * static_cast<double>(model.experts_per_token * model.expert_width + model.shared_width));
  estimate.operations = active * static_cast<double>(estimate.tokens) * static_cast<double>(model.layers);
  return estimate;
}

StatisticsManifest calibrate(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
                             const std::filesystem::path& output) {
  check_request(model, tasks, options);
  const StatisticsManifest manifest = calibration_manifest(model, tasks, options);
  nlohmann::ordered_json key = manifest_to_json(manifest);
  key["trace_tokens"] = options.trace_tokens;
  PartialRun partial(output, key, plan_memory(model, options).group_tokens);
  Calibration calibration(model, tasks, options, partial);
  calibration.run();
  partial.finish(manifest, calibration.groups());
  return manifest;
}

void run_forward_only(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  const auto groups = make_groups(tasks, options, plan_memory(model, options));
  Forward forward(model, forward_of(model, options));
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
