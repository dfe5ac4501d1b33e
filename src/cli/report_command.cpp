// moetrim report: what was measured, in tables.

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/report.h"

namespace moetrim::cli {

namespace {

struct Flags {
  std::string statistics;
  std::vector<std::string> plans, tasks;
  int resamples = 1000;
  std::uint64_t seed = 0;
};

void run_report(const Session& session, const Flags& flags) {
  std::vector<Plan> plans;
  for (const auto& file : flags.plans) plans.push_back(read_plan(file));
  const Statistics statistics = Statistics::read(flags.statistics);
  session.note_part(statistics.manifest);
  Report report;
  for (const auto& task : statistics.manifest.tasks) report.tasks.push_back(task.name);
  report.chosen = statistics.tasks(flags.tasks);
  report.load = routing_load(statistics, report.chosen);
  if (report.chosen.size() > 1) report.specialisation = specialisation(statistics, report.chosen);
  TraceOptions options;
  options.resamples = flags.resamples;
  options.seed = flags.seed;
  report.trace = report_trace(flags.statistics, statistics.manifest, options);
  for (std::size_t i = 0; i < plans.size(); ++i) {
    report.plans.emplace_back(flags.plans[i], report_plan(statistics, plans[i], flags.resamples, flags.seed));
  }
  session.print(report_to_json(report), report_to_text(report));
}

}  // namespace

void add_report(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "report", "Say how experts are used, and how sure a plan is",
                                  "moetrim report math.stats --plan plan.json");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote")->required();
  command->add_option("--plan", flags->plans, "Plan whose kept set is judged; repeat for several");
  command->add_option("--task", flags->tasks, "Load and specialisation of these tasks alone; default: all");
  command->add_option("--resamples", flags->resamples, "Of every bootstrap interval")
      ->check(CLI::Range(100, 1000000))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of the resamples")->capture_default_str();
  command->callback([&session, flags] { session.run = [&session, flags] { run_report(session, *flags); }; });
}

}  // namespace moetrim::cli
