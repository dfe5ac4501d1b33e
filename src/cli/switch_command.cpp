// moetrim switch: ranked experts switched off or strengthened.

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/error.h"
#include "moetrim/switching.h"

namespace moetrim::cli {

namespace {

struct Flags {
  std::string statistics, experts, off, base, output;
  SwitchChoice choice;
  std::optional<double> strengthen;
};

SwitchRequest request_of(const Flags& flags) {
  if (flags.off.empty() != flags.strengthen.has_value()) {
    throw UsageError("say what to do: --off drop, --off bias, or --strengthen FACTOR");
  }
  if (flags.strengthen) return {.action = SwitchAction::strengthen, .factor = *flags.strengthen, .choice = flags.choice};
  return {.action = flags.off == "drop" ? SwitchAction::drop : SwitchAction::bias, .factor = 1, .choice = flags.choice};
}

std::string describe(const Plan& plan) {
  const auto& done = plan.source.at("switch").back();
  std::string text;
  for (const auto& entry : done.at("experts")) {
    text += fmt::format("layer {:3}  {}\n", entry.at("layer").get<int>(), entry.at("experts").dump());
  }
  return text + fmt::format("{} of {} experts stay in each of {} layers\n", keep_text(plan), plan.experts, plan.layers.size());
}

void run_switch(const Session& session, const Flags& flags) {
  const SwitchRequest request = request_of(flags);
  const Contrast contrast = read_contrast(flags.experts);
  const Statistics statistics = Statistics::read(flags.statistics);
  session.note_part(statistics.manifest);
  Plan base = plan_to_change(flags.base, statistics.manifest, contrast_measure_name(contrast.measure));
  const Plan plan = switch_experts(statistics, contrast, request, std::move(base));
  write_plan(flags.output, plan);
  session.print(plan_to_json(plan), describe(plan) + "plan in " + flags.output + "\n");
}

}  // namespace

void add_switch(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "switch", "Switch ranked experts off, or strengthen them",
                                  "moetrim switch math.stats --experts ranked.json --top 10 --strengthen 1.5 -o plan.json");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote")->required();
  command->add_option("--experts", flags->experts, "Ranking that contrast wrote")->required();
  command->add_option("--top", flags->choice.top, "The first N of the ranking")->check(CLI::PositiveNumber);
  command->add_option("--per-layer", flags->choice.per_layer, "The first N of every layer")->check(CLI::PositiveNumber);
  command
      ->add_option("--off", flags->off,
                   "drop: the experts leave; bias: they stay, and no token chooses them, where the router has a "
                   "selection bias")
      ->check(CLI::IsMember({"drop", "bias"}));
  command->add_option("--strengthen", flags->strengthen, "Multiply the experts' outputs by this; 0: they put out zeros");
  command->add_option("--on", flags->base, "Plan to change; default: all experts stay");
  command->add_option("-o,--output", flags->output, "File for the plan")->required();
  command->callback([&session, flags] { session.run = [&session, flags] { run_switch(session, *flags); }; });
}

}  // namespace moetrim::cli
