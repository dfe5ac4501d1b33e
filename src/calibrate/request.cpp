// A calibration as it is asked for: what can be refused before anything runs, and what its manifest will say.

#include "calibrate/request.h"

#include <algorithm>

#include <fmt/format.h>

#include "calibrate/token_groups.h"
#include "forward/memory_plan.h"
#include "moetrim/error.h"
#include "moetrim/input_statistics.h"

namespace moetrim {

namespace {

void check_model(const Model& model, const CalibrateOptions& options) {
  const std::string folder = model.checkpoint->folder().string();
  const bool blocks = options.mtp && model.mtp_layers > 0;
  if (blocks && model.mtp_experts != model.experts) {
    throw InvalidInput(fmt::format("{}: the multi-token-prediction block has {} experts, the layers have {}; they cannot be pruned "
                                   "together, choose --mtp keep or drop", folder, model.mtp_experts, model.experts));
  }
  if (blocks && options.second_order) {
    throw InvalidInput(fmt::format("{}: second-order statistics follow the next-token loss, which does not pass through the {} "
                                   "multi-token-prediction block(s); choose --mtp keep or drop", folder, model.mtp_layers));
  }
  const std::int64_t least = std::min(model.expert_width, model.hidden);
  if (options.row_rank > 0 && options.row_rank >= least) {
    throw UsageError(fmt::format("--low-rank {}: expected 1 to {}, below both sides of an expert's matrices ({} and {})",
                                 options.row_rank, least - 1, model.expert_width, model.hidden));
  }
  if (options.row_rank > 0 && !options.second_order) throw Error("the importance of rows is measured in the reverse sweep");
  if (options.tcess_top_k < 1 || options.tcess_top_k > model.experts) {
    throw UsageError(fmt::format("--tcess-top-k must be from 1 to {}, got {}", model.experts, options.tcess_top_k));
  }
}

void check_counted(const Task& task, const CalibrateOptions& options) {
  const auto counts = [&](const Demonstration& d) {
    const auto range = counted_range(d, options.count);
    return range.second > range.first;
  };
  if (std::none_of(task.demonstrations.begin(), task.demonstrations.end(), counts)) {
    throw InvalidInput(fmt::format("{}: no token counts; every demonstration is all prompt or all response, choose another --count",
                                   task.file.string()));
  }
  const auto predicts = [&](const Demonstration& d) { return predicted_tokens(d, options.count) > 0; };
  if (options.second_order && std::none_of(task.demonstrations.begin(), task.demonstrations.end(), predicts)) {
    throw InvalidInput(fmt::format("{}: no counted token has a token before it, so there is no next-token loss to differentiate; "
                                   "choose another --count or longer demonstrations", task.file.string()));
  }
}

void check_sequential(const CalibrateOptions& options) {
  if (!options.sequential) return;
  if (!options.sequential->choose) throw Error("a sequential calibration needs a choice");
  if (options.second_order) {
    throw UsageError("a sequential calibration has no reverse sweep: the loss gradient of one layer needs all later ones; "
                     "leave out second-order");
  }
  if (options.share.count > 1) {
    throw UsageError("a sequential calibration chooses a layer's experts from all demonstrations, which none of several "
                     "processes has; run it as one process");
  }
}

/// A share without demonstrations would have nothing to measure, and all shares are refused alike.
void check_share(const std::vector<Task>& tasks, const CalibrateOptions& options) {
  const DemonstrationShare& share = options.share;
  if (share.count < 1 || share.number < 1 || share.number > share.count) {
    throw UsageError(fmt::format("share {} of {}: expected a number from 1 to {}", share.number, share.count, share.count));
  }
  if (share.count > 1 && options.trace_tokens > 0) {
    throw UsageError("--trace records the first tokens of one process; leave it out where several share the demonstrations");
  }
  std::size_t most = 0;
  for (const Task& task : tasks) most = std::max(most, task.demonstrations.size());
  if (static_cast<std::size_t>(share.count) <= most) return;
  throw UsageError(fmt::format("{} processes cannot share {} demonstration(s): some would have none; use at most {}", share.count,
                               most, most));
}

/// What budgets are counted in. What experts or atoms share, such as one scale for all, is not freed with any of them.
StatisticsManifest::Sizes sizes_of(const Model& model) {
  StatisticsManifest::Sizes sizes{.checkpoint_bytes = static_cast<std::int64_t>(model.checkpoint->total_bytes()),
                                  .width = model.expert_width,
                                  .hidden = model.hidden};
  const LayerTensors& layer = model.layer[static_cast<std::size_t>(model.moe_layers().front())];
  const auto add = [&](const Weight& weight, bool by_atom) {
    if (!weight) return;
    const bool one_for_all = weight.rule->axes[0] == Axis::E;
    for (const Tensor* part : weight.parts) {
      if (part == nullptr || (one_for_all && part->shape.size() < 2)) continue;
      const std::int64_t bytes = static_cast<std::int64_t>(part->size) / (one_for_all ? model.experts : 1);
      sizes.expert_bytes += bytes;
      if (by_atom) sizes.atom_bytes += bytes / model.expert_width;
    }
  };
  add(layer[Role::router], false);
  add(layer[Role::fused_down_bias], false);
  for (const Role role : {Role::fused_gate_up, Role::fused_gate_up_bias, Role::fused_down}) add(layer[role], true);
  if (layer.experts.empty()) return sizes;
  for (const Weight& weight : layer.experts.front()) add(weight, true);
  return sizes;
}

StatisticsManifest::TaskFacts facts_of(const Task& task, const CalibrateOptions& options, const DemonstrationShare& share) {
  StatisticsManifest::TaskFacts facts{.name = task.name, .digest = task.digest};
  for (std::size_t i = 0; i < task.demonstrations.size(); ++i) {
    if (!share.holds(static_cast<std::int64_t>(i))) continue;
    const Demonstration& demonstration = task.demonstrations[i];
    const auto counted = counted_range(demonstration, options.count);
    ++facts.demonstrations;
    facts.tokens += static_cast<std::int64_t>(demonstration.ids.size());
    facts.counted_tokens += counted.second - counted.first;
    if (options.second_order) facts.predicted_tokens += predicted_tokens(demonstration, options.count);
  }
  return facts;
}

std::optional<StatisticsManifest::Vectors> vectors_of(const Model& model, const CalibrateOptions& options) {
  auto vectors = options.vectors;
  if (!vectors) return vectors;
  vectors->width = static_cast<int>(model.expert_width);
  vectors->hidden = static_cast<int>(model.hidden);
  return vectors;
}

void add_task_facts(const std::vector<Task>& tasks, const CalibrateOptions& options, StatisticsManifest& manifest) {
  for (const Task& task : tasks) manifest.tasks.push_back(facts_of(task, options, options.share));
  if (options.share.count == 1) return;
  manifest.part = StatisticsManifest::Part{.count = options.share.count, .shares = {options.share.number}, .whole = {}};
  for (const Task& task : tasks) {
    const auto whole = facts_of(task, options, DemonstrationShare{});
    manifest.part->whole.push_back({whole.demonstrations, whole.tokens, whole.counted_tokens});
  }
}

}  // namespace

void check_request(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
  if (tasks.empty()) throw UsageError("no task to measure; give at least one --task FILE.jsonl");
  check_model(model, options);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (tasks[i].name != tasks[j].name) continue;
      throw UsageError(fmt::format("{} and {} would both be task \"{}\"; rename one", tasks[j].file.string(),
                                   tasks[i].file.string(), tasks[i].name));
    }
    check_counted(tasks[i], options);
  }
  check_share(tasks, options);
  check_sequential(options);
}

ForwardOptions calibration_forward(const Model& model, const CalibrateOptions& options) {
  ForwardOptions forward = forward_options(model, options);
  forward.mtp = options.mtp;
  return forward;
}

StatisticsManifest calibration_manifest(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options) {
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
  manifest.tcess_top_k = options.tcess_top_k;
  manifest.tcess_threshold = options.tcess_threshold;
  manifest.dtype = options.precision;
  manifest.count = options.count == Count::all ? "all" : options.count == Count::prompt ? "prompt" : "response";
  add_task_facts(tasks, options, manifest);
  if (options.second_order) manifest.expert_width = static_cast<int>(model.expert_width);
  manifest.sizes = sizes_of(model);
  manifest.vectors = vectors_of(model, options);
  manifest.row_rank = options.row_rank;
  manifest.settings = options.settings;
  if (options.sequential) manifest.settings["sequential"] = options.sequential->facts;
  if (options.inputs) announce_inputs(manifest);
  manifest.tool_version = options.tool_version;
  return manifest;
}

}  // namespace moetrim
