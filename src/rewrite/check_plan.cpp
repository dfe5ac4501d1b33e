// Refuses a plan that does not belong to the model, before anything is written.

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "moetrim/suggest.h"
#include "plan/slots.h"

namespace moetrim {

namespace {

[[noreturn]] void refuse(const Model& model, const std::string& why) {
  throw InvalidInput(fmt::format("the plan does not fit {}: {}", model.checkpoint->folder().string(), why));
}

void check_head(const Model& model, const Plan& plan, std::string_view fingerprint) {
  if (plan.family != model.family->name) {
    refuse(model, fmt::format("it was made for family {}, the checkpoint is {}", plan.family, model.family->name));
  }
  if (plan.experts != model.experts) {
    refuse(model, fmt::format("it chooses among {} experts per layer, the checkpoint has {}", plan.experts, model.experts));
  }
  if (plan.width != 0 && plan.width != model.expert_width) {
    refuse(model, fmt::format("it chooses among {} atomic experts per expert, the checkpoint has {}", plan.width,
                              model.expert_width));
  }
  if (plan.experts_per_token != model.experts_per_token) {
    refuse(model, fmt::format("it was made for {} experts per token, the checkpoint has {}", plan.experts_per_token,
                              model.experts_per_token));
  }
  const std::int64_t chosen = plan.experts_per_token_after > 0 ? plan.experts_per_token_after : model.experts_per_token;
  if (plan.keep < chosen) {
    refuse(model, fmt::format("it keeps {} experts per layer, but a token is routed to {}", plan.keep, chosen));
  }
  if (!fingerprint.empty() && plan.checkpoint_fingerprint != fingerprint) {
    refuse(model, fmt::format("it was made for the checkpoint with fingerprint {}, this one has {}; make a new plan, or "
                              "allow another checkpoint if the two are meant to differ", plan.checkpoint_fingerprint,
                              fingerprint));
  }
}

/// What the router needs of the new checkpoint.
RouterLimits limits_after(const Model& model, const Plan& plan) {
  RouterLimits limits = router_limits(model);
  limits.experts = std::max(limits.experts, plan.keep);  // experts that have two slots
  if (plan.experts_per_token_after > 0) limits.experts_per_token = plan.experts_per_token_after;
  return limits;
}

void check_router(const Model& model, const Plan& plan) {
  const RouterGroups groups = router_groups(model);
  if (plan.groups != groups) {
    refuse(model, fmt::format("it was made for {} expert groups (rule {}), the checkpoint has {} (rule {})", plan.groups.count,
                              plan.groups.rule, groups.count, groups.rule));
  }
  legal_keep(limits_after(model, plan), {.experts = plan.keep, .ratio = {}}, plan.regroup);
  if (!plan.correct_drift) return;
  if (!model.family->router.scaled) {
    refuse(model, fmt::format("it corrects router drift, but {} has no factor for all gates in its config to fold it into; make "
                              "the plan without --correct-drift", model.family->name));
  }
  if (!router_drift(plan)) refuse(model, "it corrects router drift, but says nothing of the kept experts' share");
}

void check_layers(const Model& model, const Plan& plan, Mtp mtp) {
  std::vector<int> got;
  for (const PlanLayer& layer : plan.layers) got.push_back(layer.layer);
  const std::vector<int> expected = model.moe_layers(mtp == Mtp::prune);
  if (got == expected || (mtp != Mtp::prune && got == model.moe_layers(true))) return;
  if (got == model.moe_layers(false)) {
    refuse(model, fmt::format("it does not cover the {} multi-token-prediction block(s) of the checkpoint; leave them out with "
                              "--mtp drop, copy them whole with --mtp keep, or make the plan from statistics that were "
                              "calibrated with --mtp prune", model.mtp_layers));
  }
  refuse(model, fmt::format("it must name every MoE layer once, in order; expected layers [{}], got [{}]",
                            fmt::join(expected, ", "), fmt::join(got, ", ")));
}

/// One range list per kept expert; every range within the experts and behind the one before it.
void check_atoms(const Model& model, const Plan& plan, const PlanLayer& layer) {
  if (plan.width == 0 && layer.atoms.empty()) return;
  if (layer.atoms.size() != layer.keep.size()) {
    refuse(model, fmt::format("layer {} lists the atomic experts of {} experts, expected {}", layer.layer,
                              layer.atoms.size(), plan.width == 0 ? 0 : layer.keep.size()));
  }
  for (std::size_t i = 0; i < layer.atoms.size(); ++i) {
    int free = 0;
    for (const AtomRange& range : layer.atoms[i]) {
      if (range.begin < free || range.end <= range.begin || range.end > plan.width) {
        refuse(model, fmt::format("layer {} keeps atomic experts [{}, {}) of expert {}, expected ascending ranges from 0 "
                                  "to {} that do not touch", layer.layer, range.begin, range.end, layer.keep[i],
                                  plan.width));
      }
      free = range.end + 1;
    }
  }
}

void check_keep(const Model& model, const Plan& plan, const PlanLayer& layer) {
  // One count in config.json serves all layers: others could not be loaded, but for those that the plan lists as such.
  const auto rows = static_cast<int>(router_rows(plan, layer).size());
  if (plan.counts == LayerCounts::listed) {
    if (rows > plan.keep) {
      refuse(model, fmt::format("layer {} keeps {} experts, expected at most {}", layer.layer, rows, plan.keep));
    }
    legal_keep(limits_after(model, plan), {.experts = rows, .ratio = {}}, plan.regroup);
  } else if (rows != plan.keep) {
    refuse(model, fmt::format("layer {} keeps {} experts, expected {} as in every layer", layer.layer, rows, plan.keep));
  }
  if (const std::string problem = slots_problem(plan, layer, static_cast<int>(model.experts)); !problem.empty()) refuse(model, problem);
}

void check_smoothing(const Model& model, const PlanLayer& layer) {
  if (layer.smooth.empty() || static_cast<std::int64_t>(layer.smooth.size()) == model.hidden) return;
  refuse(model, fmt::format("layer {} smooths {} hidden channels, expected {}", layer.layer, layer.smooth.size(), model.hidden));
}

}  // namespace

Mtp parse_mtp(std::string_view text) {
  if (text == "prune") return Mtp::prune;
  if (text == "keep") return Mtp::keep;
  if (text == "drop") return Mtp::drop;
  throw UsageError(fmt::format("--mtp {}: expected prune, keep or drop", in_quotes(text)));
}

void check_plan(const Model& model, const Plan& plan, std::string_view fingerprint, Mtp mtp) {
  check_head(model, plan, fingerprint);
  check_router(model, plan);
  if (merges(plan)) check_equal_counts(plan, "merging");
  check_layers(model, plan, mtp);
  for (const PlanLayer& layer : plan.layers) {
    check_keep(model, plan, layer);
    check_atoms(model, plan, layer);
    check_smoothing(model, layer);
  }
}

}  // namespace moetrim
