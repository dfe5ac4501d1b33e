// moetrim smooth: statistics to a plan that moves scales from inputs to weights.

#include <algorithm>

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/family.h"
#include "moetrim/smoothing.h"

namespace moetrim::cli {

namespace {

struct Flags {
  std::string statistics, on, output;
  std::string rounding = "power-of-two";
  double alpha = 0.5;

  SmoothRequest request() const {
    const SmoothRequest out{.alpha = alpha, .rounding = smooth_rounding_from_name(rounding)};
    check_smooth_request(out);
    return out;
  }
};

void run_smooth(const Session& session, const Flags& flags) {
  const SmoothRequest request = flags.request();
  const StatisticsManifest manifest = read_statistics_manifest(flags.statistics);
  session.note_part(manifest);
  Plan plan = plan_to_change(flags.on, manifest, "smooth");
  add_smoothing(plan, flags.statistics, manifest, request);
  plan.source["smoothing"] = {{"alpha", flags.alpha}, {"rounding", flags.rounding}};
  write_plan(flags.output, plan);
  const Family* family = find_family(manifest.family);
  const bool stores_less_one = family != nullptr && family->norm == NormKind::rms_one_plus;
  if (stores_less_one) session.note("norms of this family are stored less 1: in bf16 the new ones are rounded");
  std::string text;
  for (const PlanLayer& layer : plan.layers) {
    const auto [least, most] = std::minmax_element(layer.smooth.begin(), layer.smooth.end());
    text += fmt::format("layer {:3}  factors {:.4g} to {:.4g}\n", layer.layer, *least, *most);
  }
  session.print(plan_to_json(plan), text + "plan in " + flags.output + "\n");
}

}  // namespace

void add_smooth(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "smooth", "Plan to move scales from inputs to weights, before quantisation",
                                  "moetrim smooth arithmetic.stats -o smooth.json");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate --statistics vectors wrote")->required();
  command->add_option("--alpha", flags->alpha, "How much of the inputs' range goes to the weights, from 0 to 1")
      ->capture_default_str();
  command->add_option("--rounding", flags->rounding, "Of factors: power-of-two, lossless in bf16 weights, or none")
      ->capture_default_str();
  command->add_option("--on", flags->on, "Plan to add the factors to; default: one that keeps every expert");
  command->add_option("-o,--output", flags->output, "File for the plan")->required();
  command->callback([&session, flags] { session.run = [&session, flags] { run_smooth(session, *flags); }; });
}

}  // namespace moetrim::cli
