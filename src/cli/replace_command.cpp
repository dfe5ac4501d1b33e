// moetrim replace: statistics to a plan that replaces experts by their mean outputs.

#include <optional>

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/error.h"
#include "moetrim/replace.h"

namespace moetrim::cli {

namespace {

constexpr const char* kOwnMethod = "mone";

struct Flags {
  std::string statistics, output, keep;
  std::string method = kOwnMethod;
  std::uint64_t seed = 0;
  std::vector<std::string> protect;
  bool slim = false;
};

Scores scores_of(const Flags& flags, const Statistics& statistics) {
  if (flags.method == kOwnMethod) {
    return mone_scores(statistics, [&](int layer) { return read_vectors(flags.statistics, statistics.manifest, layer); });
  }
  return moetrim::score(statistics, MethodMix::parse(flags.method), {.seed = flags.seed});
}

void run_replace(const Session& session, const Flags& flags) {
  const PlanRequest request{.keep = KeepBudget::parse(flags.keep), .protect = flags.protect};
  const auto method = flags.method == kOwnMethod ? std::nullopt : std::optional(MethodMix::parse(flags.method));
  if (method && method->grain() == Grain::atom) {
    throw UsageError(fmt::format("--method {}: it scores atomic experts", flags.method));
  }
  const StatisticsManifest manifest = read_statistics_manifest(flags.statistics);
  check_replace(manifest);
  if (!manifest.vectors) {
    throw InvalidInput(fmt::format("{}: mean outputs were not measured; calibrate with --statistics vectors",
                                   flags.statistics));
  }
  const Statistics statistics = Statistics::read(flags.statistics, method && method->second_order() != nullptr);
  session.note_part(manifest);
  Plan plan = make_plan(statistics, scores_of(flags, statistics), request, Variant::executed);
  const int replaced = plan.experts - plan.keep;
  replace_dropped(plan, flags.slim ? manifest.vectors->width : 0);
  plan.source.erase("expected");
  write_plan(flags.output, plan);
  session.print(plan_to_json(plan),
                fmt::format("{} of {} experts in each of {} layers become constants, by {}{}\nplan in {}; rewrite it with "
                            "--statistics {}\n", replaced, plan.experts, plan.layers.size(), plan.method,
                            flags.slim ? "" : "; the new checkpoint is as large as the old one, see --slim", flags.output,
                            flags.statistics));
}

}  // namespace

void add_replace(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "replace", "Plan to replace experts by their mean outputs",
                                  "moetrim replace arithmetic.stats --keep 0.5 -o plan.json");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate --statistics vectors wrote")->required();
  command->add_option("--keep", flags->keep, "Experts of every layer that stay: a number (16), a ratio (0.5) or a share (50%)")
      ->required();
  command->add_option("--method", flags->method, "What chooses: mone (how outputs vary and count), or a method of plan")
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of the random methods")->capture_default_str();
  command->add_option("--protect", flags->protect,
                      "Experts that stay whatever their score: super, or LAYER:EXPERT,EXPERT; repeatable")
      ->allow_extra_args(false);
  command->add_flag("--slim", flags->slim,
                    "Leave the weights of replaced experts out; the new checkpoint loads with our own class");
  command->add_option("-o,--output", flags->output, "File for the plan")->required();
  command->callback([&session, flags] { session.run = [&session, flags] { run_replace(session, *flags); }; });
}

}  // namespace moetrim::cli
