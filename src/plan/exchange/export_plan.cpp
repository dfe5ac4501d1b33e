// A plan to the forms of other tools.
#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "family/name_pattern.h"
#include "moetrim/error.h"
#include "moetrim/plan_exchange.h"
#include "moetrim/whole_experts.h"

namespace moetrim {
namespace {

using Json = nlohmann::ordered_json;

void check_drops_alone(const Plan& plan) {
  const auto refuse = [](std::string_view what) {
    throw InvalidInput(fmt::format("the plan {}, and such a file can only name experts; write the checkpoint with moetrim rewrite",
                                   what));
  };
  if (const std::string_view what = beyond_whole_experts(plan); !what.empty()) refuse(what);
  if (plan.order == SlotOrder::free) refuse("has its experts in an order of its own");
  if (plan.regroup) refuse("changes the router's groups");
  if (plan.correct_drift) refuse("scales the gates");
  if (plan.experts_per_token_after > 0) refuse("changes the number of experts per token");
}

void check_scores(const Plan& plan, const Scores& scores) {
  const auto refuse = [](const std::string& why) { throw InvalidInput("the scores do not fit the plan: " + why); };
  const auto found = scores.source.find("checkpoint_fingerprint");
  const std::string of = found != scores.source.end() && found->is_string() ? found->get<std::string>() : "unknown";
  if (of != plan.checkpoint_fingerprint) {
    refuse(fmt::format("they are of the checkpoint with fingerprint {}, the plan of {}", of, plan.checkpoint_fingerprint));
  }
  if (scores.grain != Grain::expert) refuse("they are of atomic experts");
  for (const PlanLayer& layer : plan.layers) {
    const auto row = std::find(scores.layers.begin(), scores.layers.end(), layer.layer);
    if (row == scores.layers.end()) refuse(fmt::format("they have no layer {}", layer.layer));
    const auto count = std::ssize(scores.values[static_cast<std::size_t>(row - scores.layers.begin())]);
    if (count != plan.experts) refuse(fmt::format("layer {} has {} of {} experts", layer.layer, count, plan.experts));
  }
}

std::vector<int> all_ids(const Plan& plan) {
  std::vector<int> ids(static_cast<std::size_t>(plan.experts));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

bool keeps(const PlanLayer& layer, int expert) { return std::binary_search(layer.keep.begin(), layer.keep.end(), expert); }

/// Kept experts before others, then by score.
std::string ranked_lines(const Plan& plan, const Scores& scores) {
  std::string text;
  for (const PlanLayer& layer : plan.layers) {
    const auto at = std::find(scores.layers.begin(), scores.layers.end(), layer.layer) - scores.layers.begin();
    const std::vector<double>& score = scores.values[static_cast<std::size_t>(at)];
    std::vector<int> ids = all_ids(plan);
    std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) {
      if (keeps(layer, a) != keeps(layer, b)) return keeps(layer, a);
      return score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
    });
    text += Json{{std::to_string(layer.layer), ids}}.dump() + "\n";
  }
  return text;
}

/// A layer a line.
std::string profile_text(const Plan& plan) {
  std::string pairs;
  for (const PlanLayer& layer : plan.layers) {
    std::string line;
    for (const int expert : all_ids(plan)) {
      if (!keeps(layer, expert)) line += fmt::format("{}[{}, {}]", line.empty() ? "" : ", ", layer.layer, expert);
    }
    if (!line.empty()) pairs += (pairs.empty() ? "\n    " : ",\n    ") + line;
  }
  return "{\n  \"version\": 1,\n  \"pruned_experts\": [" + pairs + (pairs.empty() ? "]\n}\n" : "\n  ]\n}\n");
}

/// "model.layers.{layer}.mlp", by the name of its router.
std::string block_pattern(const Plan& plan) {
  constexpr std::string_view kLayer = "{layer}.";
  const Family* family = find_family(plan.family);
  if (family == nullptr) throw InvalidInput(fmt::format("the plan is for family {}, whose names are not known", plan.family));
  for (const TensorRule& rule : family->tensors) {
    if (rule.role != Role::router) continue;
    const auto block = rule.name.find(kLayer) + kLayer.size();
    return rule.name.substr(0, rule.name.find('.', block));
  }
  throw InvalidInput(fmt::format("family {} has no router", plan.family));
}

std::string report_text(const Plan& plan) {
  const std::string pattern = block_pattern(plan);
  std::string text;
  for (const PlanLayer& layer : plan.layers) {
    text += fmt::format("{}\n  {}: {}", text.empty() ? "{" : ",", Json(expand_name(pattern, layer.layer, -1)).dump(), Json(layer.keep).dump());
  }
  return text + "\n}\n";
}

}  // namespace

std::string export_plan(const Plan& plan, PlanForm form, const Scores* scores) {
  const std::string_view name = plan_form_name(form);
  if (form != PlanForm::vllm_ascend && scores != nullptr) throw UsageError(fmt::format("form {} needs no scores", name));
  if (form == PlanForm::vllm_ascend && scores == nullptr) {
    throw UsageError(fmt::format("form {} ranks all experts, which a plan does not: give the scores that it was made from", name));
  }
  check_drops_alone(plan);
  if (form == PlanForm::profile) return profile_text(plan);
  if (form == PlanForm::llm_compressor) return report_text(plan);
  check_equal_counts(plan, fmt::format("form {}", name));
  check_scores(plan, *scores);
  return ranked_lines(plan, *scores);
}

}  // namespace moetrim
