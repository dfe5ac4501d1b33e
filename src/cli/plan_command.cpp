// moetrim plan: statistics and a budget to a plan.

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/stages.h"
#include "moetrim/plan.h"

namespace moetrim::cli {

void PlanFlags::add(CLI::App& command) {
  score.add(command);
  command.add_option("--keep", keep, "Experts of every layer that stay: a number (16), a ratio (0.5) or a share (50%)")->required();
  command.add_option("--protect", protect, "Experts that stay whatever their score: super, or LAYER:EXPERT,EXPERT; repeatable")
      ->allow_extra_args(false);
  command.add_flag("--regroup", regroup, "Give up the router's groups of experts: the best of a layer stay, wherever they are");
  command.add_flag("--correct-drift", correct_drift, "Let rewrite undo the growth of kept gates that are not renormalised");
}

void PlanFlags::check(const RouterLimits& limits) const {
  legal_keep(limits, KeepBudget::parse(keep), regroup);
  if (correct_drift) check_correct_drift(limits);
}

Plan PlanFlags::make(const Statistics& statistics) const {
  const ScoreOptions options = score.options();
  const Scores scores = moetrim::score(statistics, find_scoring_method(score.method), options, score.weights());
  const PlanRequest request{
      .keep = KeepBudget::parse(keep), .protect = protect, .regroup = regroup, .correct_drift = correct_drift};
  return make_plan(statistics, scores, request, options.variant);
}

namespace {

std::string describe_groups(const Plan& plan) {
  if (plan.groups.count == 1) return "";
  if (plan.regroup) return fmt::format("the router's {} groups of experts become one\n", plan.groups.count);
  return fmt::format("{} in each of the router's {} groups of experts\n", plan.keep / plan.groups.count, plan.groups.count);
}

std::string describe_drift(const Plan& plan) {
  const auto drift = router_drift(plan);
  if (!drift) return "";
  return fmt::format("router drift: kept gate weights grow by about {:.2f} (most in layer {}: {:.2f}){}\n",
                     1 / drift->mean_mass, drift->least_layer, 1 / drift->least_mass,
                     plan.correct_drift ? "; the new checkpoint's scale undoes the mean" : "");
}

std::string describe_plan(const Plan& plan) {
  int unseen = 0;
  int unseen_kept = 0;
  for (const PlanLayer& layer : plan.layers) {
    unseen += layer.unseen;
    unseen_kept += layer.unseen_kept;
  }
  std::string text = fmt::format("keeps {} of {} experts in each of {} layers by {}\n", plan.keep, plan.experts,
                                 plan.layers.size(), plan.method);
  text += describe_groups(plan) + describe_drift(plan);
  if (!plan.protect.empty()) text += fmt::format("{} protected\n", plan.protect.size());
  if (unseen > 0) {
    text += fmt::format("{} experts never saw a counted token; {} of them are kept all the same: more demonstrations, or fewer "
                        "experts, would settle it\n", unseen, unseen_kept);
  }
  return text;
}

}  // namespace

void add_plan(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "plan", "Decide which experts stay",
                                  "moetrim plan arithmetic.stats --method easy-ep --keep 0.5 -o plan.json");
  struct Flags : PlanFlags {
    std::string statistics, output;
  };
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote")->required();
  flags->add(*command);
  command->add_option("-o,--output", flags->output, "File for the plan")->required();
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      find_scoring_method(flags->score.method);  // a misspelt name before a large folder is read
      const Plan plan = flags->make(Statistics::read(flags->statistics));
      write_plan(flags->output, plan);
      session.print(plan_to_json(plan), describe_plan(plan) + "plan in " + flags->output + "\n");
    };
  });
}

}  // namespace moetrim::cli
