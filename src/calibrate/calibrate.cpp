// Calibration: demonstrations through a checkpoint, layer by layer, to statistics.

#include "moetrim/calibrate.h"

#include <algorithm>

#include <fmt/format.h>

#include "calibrate/observe.h"
#include "calibrate/partial_run.h"
#include "calibrate/reverse_sweep.h"
#include "calibrate/token_groups.h"
#include "calibrate/trace.h"
#include "moetrim/error.h"
#include "moetrim/forward.h"
#include "moetrim/machine.h"

namespace moetrim {

namespace {

ObserveOptions observe_options(const CalibrateOptions& options) {
  return {.tcess_top_k = options.tcess_top_k, .tcess_threshold = options.tcess_threshold};
}

std::int64_t predicted_tokens(const Task& task, Count count) {
  std::int64_t tokens = 0;
  for (const Demonstration& demonstration : task.demonstrations) {
    const auto counted = counted_range(demonstration, count);
    tokens += std::max<std::int64_t>(0, counted.second - std::max<std::int64_t>(counted.first, 1));
  }
  return tokens;
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
  if (options.second_order && options.mtp && model.mtp_layers > 0) {
    throw InvalidInput(fmt::format("{}: second-order statistics follow the next-token loss, which does not pass through the {} "
                                   "multi-token-prediction block(s); choose --mtp keep or drop", model.checkpoint->folder().string(),
                                   model.mtp_layers));
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
    if (options.second_order && predicted_tokens(tasks[i], options.count) == 0) {
      throw InvalidInput(fmt::format("{}: no counted token has a token before it, so there is no next-token loss to differentiate; "
                                     "choose another --count or longer demonstrations", tasks[i].file.string()));
    }
  }
}

ForwardOptions forward_of(const Model& model, const CalibrateOptions& options) {
  ForwardOptions forward = forward_options(model, options);
  forward.mtp = options.mtp;
  return forward;
}

std::int64_t longest_demonstration(const std::vector<Task>& tasks) {
  std::size_t longest = 0;
  for (const Task& task : tasks) {
    for (const Demonstration& demonstration : task.demonstrations) longest = std::max(longest, demonstration.ids.size());
  }
  return static_cast<std::int64_t>(longest);
}

MemoryPlan memory_of(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  const std::uint64_t forward = forward_token_bytes(model, options);
  if (!options.second_order) return plan_memory(model, options, forward);
  const Precision precision = forward_of(model, options).precision;
  // While a segment runs again, the gradient waits beside its hidden states.
  const std::uint64_t gradient = static_cast<std::uint64_t>(model.hidden) * (precision == Precision::fp64 ? 8 : 4);
  const auto threads = static_cast<std::uint64_t>(options.threads > 0 ? options.threads : usable_cores());
  const std::uint64_t sums = (3 * tasks.size() + 2) * static_cast<std::uint64_t>(model.experts * model.expert_width) * 8;
  return plan_memory(model, options, std::max(forward + gradient, Backward::bytes_per_token(model, precision)),
                     threads * Backward::tape_bytes(model, precision, longest_demonstration(tasks)) + 2 * sums);
}

/// How the tokens are cut into groups: by the memory, and for the reverse sweep by the disk.
RunCut cut_of(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
              const std::filesystem::path& output) {
  RunCut cut{.group_tokens = memory_of(model, tasks, options).group_tokens};
  if (!options.second_order) return cut;
  std::int64_t tokens = 0;
  for (const Task& task : tasks) {
    for (const Demonstration& demonstration : task.demonstrations) tokens += static_cast<std::int64_t>(demonstration.ids.size());
  }
  cut.boundaries = plan_boundaries(model, options, output, std::min(cut.group_tokens, tokens), longest_demonstration(tasks));
  cut.group_tokens = std::min(cut.group_tokens, cut.boundaries.group_tokens);
  return cut;
}

/// One calibration: the groups in turn, each through all layers, and back where second-order statistics are wanted.
class Calibration {
 public:
  Calibration(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options, PartialRun& partial)
      : model_(model), options_(options), forward_options_(forward_of(model, options)), tasks_(static_cast<int>(tasks.size())),
        partial_(partial) {
    MemoryPlan plan = memory_of(model, tasks, options);
    plan.group_tokens = partial.cut().group_tokens;
    groups_ = make_groups(tasks, options, plan);
    for (const TokenGroup& group : groups_) total_ += static_cast<std::int64_t>(group.batch.ids.size()) * steps();
  }

  int groups() const { return static_cast<int>(groups_.size()); }

  /// @return the loss of every task, in nats; empty without second order.
  std::vector<double> run() {
    RunState state = partial_.load_state().value_or(RunState{});
    for (int g = 0; g < state.group; ++g) done_ += group_tokens(g) * steps();
    while (state.group < groups()) {
      const at::Tensor hidden = run_forward(state);
      if (options_.second_order) run_reverse(state, hidden);
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
      forward.run_layer(routed);
      if (routed.tokens > 0) measure(state, group, routed);
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

  void run_reverse(RunState& state, const at::Tensor& hidden) {
    const TokenGroup& group = groups_[static_cast<std::size_t>(state.group)];
    const ReverseSweep sweep(model_, forward_options_, tasks_, partial_, [&](const RunState& passed) {
      made_progress(2 * group_tokens(passed.group));
      stop_if_asked(passed);
    });
    if (state.sweep == Sweep::forward) sweep.turn_round(state, group, hidden);
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
  const CalibrateOptions& options_;
  const ForwardOptions forward_options_;
  int tasks_;
  PartialRun& partial_;
  std::vector<TokenGroup> groups_;
  std::int64_t done_ = 0, total_ = 0;
};

}  // namespace

namespace {

/// What budgets are counted in. Parts of a quantised weight that atoms share, such as scales of a block, count in full where
/// they would be split.
StatisticsManifest::Sizes sizes_of(const Model& model) {
  StatisticsManifest::Sizes sizes{.checkpoint_bytes = static_cast<std::int64_t>(model.checkpoint->total_bytes()),
                                  .width = model.expert_width,
                                  .hidden = model.hidden};
  const LayerTensors& layer = model.layer[static_cast<std::size_t>(model.moe_layers().front())];
  const auto add = [&](const Weight& weight, bool per_atom) {
    if (!weight) return;
    for (const Tensor* part : weight.parts) {
      if (part == nullptr) continue;
      const bool by_expert = weight.rule->axes[0] == Axis::E && part->shape.size() >= 2;
      const auto bytes = static_cast<std::int64_t>(part->size) / (by_expert || weight.rule->role == Role::router ? model.experts : 1);
      sizes.expert_bytes += bytes;
      if (per_atom) sizes.atom_bytes += bytes / model.expert_width;
    }
  };
  add(layer[Role::router], false);
  for (const Role role : {Role::fused_gate_up, Role::fused_gate_up_bias, Role::fused_down}) add(layer[role], true);
  add(layer[Role::fused_down_bias], false);
  if (!layer.experts.empty()) {
    for (const Weight& weight : layer.experts.front()) add(weight, true);
  }
  return sizes;
}

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
    if (options.second_order) facts.predicted_tokens = predicted_tokens(task, options.count);
    manifest.tasks.push_back(std::move(facts));
  }
  if (options.second_order) manifest.expert_width = static_cast<int>(model.expert_width);
  manifest.sizes = sizes_of(model);
  manifest.settings = options.settings;
  manifest.tool_version = options.tool_version;
  return manifest;
}

CalibrateEstimate estimate_calibration(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
                                       const std::filesystem::path& output) {
  check_request(model, tasks, options);
  MemoryPlan plan = memory_of(model, tasks, options);
  const RunCut cut = cut_of(model, tasks, options, output);
  plan.group_tokens = cut.group_tokens;
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
  // The reverse sweep reads the layers again, and once more where boundaries are missing.
  const std::uint64_t reads = !options.second_order ? 1 : cut.boundaries.step > 1 ? 3 : 2;
  estimate.read_bytes = model.checkpoint->total_bytes() * groups.size() * reads;
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
  }
  const double active = 2.0 * static_cast<double>(model.hidden) *
                        (static_cast<double>(model.heads + model.key_value_heads) * 2 * static_cast<double>(model.head_dim) +
                         3.0 * static_cast<double>(model.experts_per_token * model.expert_width + model.shared_width));
  const double sweeps = !options.second_order ? 1 : cut.boundaries.step > 1 ? 4 : 3;
  estimate.operations = sweeps * active * static_cast<double>(estimate.tokens) * static_cast<double>(model.layers);
  return estimate;
}

StatisticsManifest calibrate(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
                             const std::filesystem::path& output) {
  check_request(model, tasks, options);
  StatisticsManifest manifest = calibration_manifest(model, tasks, options);
  nlohmann::ordered_json key = manifest_to_json(manifest);
  key["trace_tokens"] = options.trace_tokens;
  PartialRun partial(output, key, cut_of(model, tasks, options, output));
  Calibration calibration(model, tasks, options, partial);
  const std::vector<double> loss = calibration.run();
  for (std::size_t task = 0; task < loss.size(); ++task) manifest.tasks[task].loss = loss[task];
  partial.finish(manifest, calibration.groups());
  return manifest;
}

void run_forward_only(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  const auto groups = make_groups(tasks, options, plan_memory(model, options, forward_token_bytes(model, options)));
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
