// Refuses a plan that does not belong to a GGUF model, or cannot be done on its bytes, before anything is written.

#include "gguf/rewrite/check_plan.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "moetrim/whole_experts.h"
#include "plan/slots.h"

namespace moetrim::gguf_detail {

namespace {

[[noreturn]] void refuse(const GgufMoe& model, const std::string& why) {
  throw InvalidInput(fmt::format("the plan does not fit {}: {}", model.path().string(), why));
}

void check_bytes_suffice(const GgufMoe& model, const Plan& plan) {
  if (const std::string_view what = beyond_whole_experts(plan); !what.empty()) {
    refuse(model, fmt::format("it {}, and the experts of a GGUF file are moved as they are, never computed; rewrite the Hugging Face checkpoint "
                              "with this plan, then moetrim export --format gguf", what));
  }
  for (const PlanLayer& layer : plan.layers) {
    if (std::ssize(layer.keep) == plan.keep) continue;
    refuse(model, fmt::format("layer {} keeps {} experts, expected {} as in every layer: llama.cpp has one expert_count; make a plan with "
                              "the same number in every layer (plan --keep)", layer.layer, layer.keep.size(), plan.keep));
  }
}

void check_head(const GgufMoe& model, const Plan& plan) {
  const auto& families = model.architecture->families;
  if (std::ranges::find(families, plan.family) == families.end()) {
    refuse(model, fmt::format("it was made for family {}, the file is of architecture {} ({})", in_quotes(plan.family),
                              model.architecture->name, fmt::join(families, ", ")));
  }
  if (plan.experts != model.experts) {
    refuse(model, fmt::format("it chooses among {} experts per layer, the file has {}", plan.experts, model.experts));
  }
  if (plan.experts_per_token != model.experts_per_token) {
    refuse(model, fmt::format("it was made for {} experts per token, the file has {}", plan.experts_per_token, model.experts_per_token));
  }
}

void check_fingerprint(const GgufMoe& model, const Plan& plan) {
  const auto& metadata = model.file->metadata();
  if (const auto digest = metadata.text(kGgufPlanKey, model.path())) {
    refuse(model, fmt::format("the file was pruned already, with plan {}, so its experts have other numbers than those of a plan for the "
                              "original; give the original file, or allow another checkpoint if the plan was made for this one",
                              in_quotes(*digest)));
  }
  const auto fingerprint = metadata.text(kGgufSourceKey, model.path());
  if (!fingerprint || *fingerprint == plan.checkpoint_fingerprint) return;
  refuse(model, fmt::format("it was made for the checkpoint with fingerprint {}, the file was exported from {}; make a new plan, or allow "
                            "another checkpoint if the two are meant to differ", in_quotes(plan.checkpoint_fingerprint),
                            in_quotes(*fingerprint)));
}

/// The layers of the plan that the new file will have.
std::vector<int> planned_layers(const GgufMoe& model, const Plan& plan, Mtp mtp) {
  std::vector<int> out;
  for (const PlanLayer& layer : plan.layers) out.push_back(layer.layer);
  if (mtp != Mtp::drop) return out;
  // Its multi-token-prediction blocks, which many files never had: neighbours from the last layer on.
  int next = static_cast<int>(std::ranges::count_if(out, [&](int layer) { return layer < model.layers(); }));
  const auto beyond = out.begin() + next;
  next = model.layers();
  const bool neighbours = std::all_of(beyond, out.end(), [&](int layer) { return layer == next++; });
  if (neighbours) out.erase(beyond, out.end());
  return out;
}

void check_layers(const GgufMoe& model, const Plan& plan, Mtp mtp) {
  const std::vector<int> got = planned_layers(model, plan, mtp), expected = model.moe_layers(mtp == Mtp::prune);
  if (got == expected) return;
  if (got == model.moe_layers(false)) {
    refuse(model, fmt::format("it does not cover the {} multi-token-prediction block(s) of the file; leave them out with --mtp drop, or "
                              "make the plan from statistics that were calibrated with --mtp prune", model.mtp_blocks));
  }
  if (mtp == Mtp::prune && std::ssize(got) > std::ssize(expected) && std::equal(expected.begin(), expected.end(), got.begin())) {
    refuse(model, fmt::format("it covers layers beyond the file's {} blocks; if they are multi-token-prediction blocks that the file was "
                              "made without, say so with --mtp drop", model.blocks));
  }
  refuse(model, fmt::format("it must name every MoE layer once, in order; expected layers [{}], got [{}]", fmt::join(expected, ", "),
                            fmt::join(got, ", ")));
}

/// By its number of experts llama.cpp tells Maverick, whose queries and keys are not normalised, from Scout, whose are.
void check_llama4(const GgufMoe& model, const Plan& plan) {
  constexpr int kMaverick = 128;
  if (model.architecture->name != "llama4" || (model.experts == kMaverick) == (plan.keep == kMaverick)) return;
  refuse(model, fmt::format("it keeps {} of {} experts; llama.cpp normalises the queries and keys of a llama4 unless it has {} experts, and "
                            "would compute another model", plan.keep, model.experts, kMaverick));
}

void check_keep(const GgufMoe& model, const Plan& plan) {
  for (const PlanLayer& layer : plan.layers) {
    if (const std::string problem = slots_problem(plan, layer, model.experts); !problem.empty()) refuse(model, problem);
  }
}

void check_router(const GgufMoe& model, const Plan& plan) {
  const RouterGroups groups = model.groups.value_or(RouterGroups{});
  // A file without groups routes over all experts, whatever the checkpoint did: then any plan's groups do.
  if (model.groups && (plan.groups.count != groups.count || plan.groups.chosen != groups.chosen)) {
    refuse(model, fmt::format("it was made for {} expert groups, {} of them chosen, the file has {}, {} chosen", plan.groups.count,
                              plan.groups.chosen, groups.count, groups.chosen));
  }
  const int chosen = plan.experts_per_token_after > 0 ? plan.experts_per_token_after : model.experts_per_token;
  const RouterLimits limits{.experts = std::max(model.experts, plan.keep), .experts_per_token = chosen, .groups = groups};
  legal_keep(limits, {.experts = plan.keep, .ratio = {}}, plan.regroup && model.groups);
  if (!plan.correct_drift) return;
  if (!reads_weights_scale(*model.architecture)) {
    refuse(model, fmt::format("it corrects router drift, but llama.cpp reads no factor for all gates of {}; make the plan without "
                              "--correct-drift", model.architecture->name));
  }
  if (!router_drift(plan)) refuse(model, "it corrects router drift, but says nothing of the kept experts' share");
}

}  // namespace

bool reads_weights_scale(const GgufArchitecture& architecture) {
  static constexpr std::array<std::string_view, 3> kReads = {"deepseek2", "dots1", "glm4moe"};
  return std::ranges::find(kReads, architecture.name) != kReads.end();
}

void check_gguf_plan(const GgufMoe& model, const Plan& plan, Mtp mtp, bool other) {
  if (mtp == Mtp::keep && model.mtp_blocks > 0) {
    throw UsageError(fmt::format("--mtp keep: llama.cpp has one expert_count for the layers and the {} multi-token-prediction block(s) of {}; "
                                 "take prune or drop", model.mtp_blocks, model.path().string()));
  }
  check_head(model, plan);
  if (!other) check_fingerprint(model, plan);
  check_bytes_suffice(model, plan);
  check_layers(model, plan, mtp);
  check_keep(model, plan);
  check_llama4(model, plan);
  check_router(model, plan);
}

}  // namespace moetrim::gguf_detail
