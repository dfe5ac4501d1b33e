// moetrim place: experts in an order that suits the devices that will hold them.

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/placement.h"

namespace moetrim::cli {

namespace {

struct Flags {
  std::string statistics, objective = "both", base, output;
  PlacementRequest request;
};

std::string row(const char* name, const PlacementCost& cost, int nodes) {
  const auto json = placement_cost_to_json(cost);
  const auto percent = [&](const char* field) { return 100 * json.at(field).get<double>(); };
  std::string text =
      fmt::format("{:<7} {:5.1f}% of pairs of neighbouring layers and {:5.1f}% of pairs of one layer on two devices", name,
                  percent("transitions_crossing"), percent("coactivations_crossing"));
  if (nodes > 1) {
    text += fmt::format(" ({:.1f}% and {:.1f}% on two nodes)", percent("transitions_between_nodes"),
                        percent("coactivations_between_nodes"));
  }
  return text + fmt::format("; fullest device {:.2f} times the mean, at worst {:.2f} (layer {})\n", cost.mean_load,
                            cost.worst_load, cost.worst_layer);
}

void run_place(const Session& session, Flags flags) {
  flags.request.objective = placement_objective_from_name(flags.objective);
  const Statistics statistics = Statistics::read(flags.statistics);
  session.note_part(statistics.manifest);
  Plan base = plan_to_change(flags.base, statistics.manifest, "place");
  const PlacedPlan placed = place_experts(statistics, flags.request, std::move(base));
  write_plan(flags.output, placed.plan);
  const std::string text =
      row("before", placed.before, flags.request.nodes) + row("after", placed.after, flags.request.nodes);
  session.print(plan_to_json(placed.plan), text + "plan in " + flags.output + "\n");
}

}  // namespace

void add_place(CLI::App& app, Session& session) {
  CLI::App* command =
      add_command(app, session, "place", "Reorder the experts of every layer for the devices that will hold them",
                  "moetrim place math.stats --devices 8 --nodes 2 -o plan.json");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote")->required();
  command->add_option("--devices", flags->request.devices, "Devices that share every layer's experts, as many on each")
      ->required()->check(CLI::PositiveNumber);
  command->add_option("--nodes", flags->request.nodes, "Nodes that the devices are in, as many in each")
      ->check(CLI::PositiveNumber)->capture_default_str();
  command
      ->add_option("--objective", flags->objective, "traffic: a token's experts together; load: devices equally busy; both")
      ->check(CLI::IsMember({"traffic", "load", "both"}))
      ->capture_default_str();
  command->add_option("--task", flags->request.tasks, "Count these tasks' tokens alone; default: all");
  command->add_option("--seed", flags->request.seed, "Of the orders that the search starts from")->capture_default_str();
  command->add_option("--on", flags->base, "Plan to change; default: all experts stay");
  command->add_option("-o,--output", flags->output, "File for the plan")->required();
  command->callback([&session, flags] { session.run = [&session, flags] { run_place(session, *flags); }; });
}

}  // namespace moetrim::cli
