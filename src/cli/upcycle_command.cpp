// moetrim upcycle: statistics to a plan with more experts, by repeating them.

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/error.h"
#include "moetrim/upcycle.h"

namespace moetrim::cli {

namespace {

struct Flags : ScoreFlags {
  std::string statistics, output, to;
  std::string top_k = "keep";
  bool uniform = false;
  double noise = 0;

  UpcycleRequest request() const {
    UpcycleRequest out{.uniform = uniform, .top_k = upcycle_top_k_from_name(top_k), .noise = noise, .seed = seed};
    out.parse_to(to);
    return out;
  }
};

std::string describe_upcycle(const Plan& plan) {
  std::size_t most = 1;
  for (const PlanLayer& layer : plan.layers) {
    for (auto at = layer.keep.begin(); at != layer.keep.end();) {
      const auto end = std::upper_bound(at, layer.keep.end(), *at);
      most = std::max(most, static_cast<std::size_t>(end - at));
      at = end;
    }
  }
  std::string text = fmt::format("{} experts become {} in each of {} layers; none has more than {} copies\n", plan.experts,
                                 plan.keep, plan.layers.size(), most);
  if (plan.experts_per_token_after == 0) {
    return text + fmt::format("still {} experts per token: copies compete for them, so that the new model differs from the "
                              "old one until it is trained\n", plan.experts_per_token);
  }
  return text + fmt::format("{} experts per token instead of {}{}\n", plan.experts_per_token_after, plan.experts_per_token,
                            plan.noise > 0 ? "" : ": the same function");
}

void run_upcycle(const Session& session, const Flags& flags) {
  const UpcycleRequest request = flags.request();
  const StatisticsManifest manifest = read_statistics_manifest(flags.statistics);
  check_upcycle(manifest, request);
  std::optional<Scores> utility;
  if (request.uniform == !flags.method.empty()) {
    throw UsageError("say how copies are shared out: --method, or --uniform for as many of every expert");
  }
  if (!request.uniform) {
    const MethodMix method = MethodMix::parse(flags.method);
    if (method.grain() == Grain::atom) throw UsageError(fmt::format("--method {}: it scores atomic experts", flags.method));
    const Statistics statistics = Statistics::read(flags.statistics, method.second_order() != nullptr);
    session.note_part(statistics.manifest);
    utility = moetrim::score(statistics, method, flags.options(), flags.weights());
  }
  const Plan plan = upcycle_plan(manifest, utility ? &*utility : nullptr, request);
  write_plan(flags.output, plan);
  session.print(plan_to_json(plan), describe_upcycle(plan) + "plan in " + flags.output + "\n");
}

}  // namespace

void add_upcycle(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "upcycle", "Plan a checkpoint with more experts, by repeating them",
                                  "moetrim upcycle arithmetic.stats --to 2x --method reap -o plan.json");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote")->required();
  command->add_option("--to", flags->to, "Experts of every layer: a number (128), or times as many (2x)")->required();
  flags->ScoreFlags::add(*command, /*required=*/false);
  command->add_flag("--uniform", flags->uniform, "As many copies of every expert instead of by score");
  command->add_option("--top-k", flags->top_k, "Experts per token: keep, or scale with the copies, which keeps the function")
      ->capture_default_str();
  command->add_option("--noise", flags->noise, "Deviation of noise on copies, as a share of a matrix's root mean square")
      ->capture_default_str();
  command->add_option("-o,--output", flags->output, "File for the plan")->required();
  command->callback([&session, flags] { session.run = [&session, flags] { run_upcycle(session, *flags); }; });
}

}  // namespace moetrim::cli
