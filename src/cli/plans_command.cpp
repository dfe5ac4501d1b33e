// moetrim plans: plans to and from the forms of other tools.

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/checkpoint.h"
#include "moetrim/family.h"
#include "moetrim/plan_exchange.h"
#include "moetrim/scores_file.h"

namespace moetrim::cli {

namespace {

struct ExportFlags {
  std::string plan, form, scores, output;
};

struct ImportFlags {
  std::string file, form, checkpoint, output;
  ImportOptions options;
};

void add_form(CLI::App& command, std::string& form) {
  command
      .add_option("--form", form,
                  "vllm-ascend: ranked experts, a layer a line (JSONL); profile: the experts that vLLM is to leave out while it loads; "
                  "llm-compressor: the report of its REAP modifier")
      ->required()
      ->check(CLI::IsMember({"vllm-ascend", "profile", "llm-compressor"}));
}

/// How the runtime is told of the file.
std::string usage(const ExportFlags& flags, PlanForm form, double ratio) {
  switch (form) {
    case PlanForm::vllm_ascend: {
      const nlohmann::ordered_json config{{"expert_list_file", flags.output}, {"expert_prune_ratio", ratio}};
      return fmt::format("vllm-ascend: --additional-config '{}'\n", config.dump());
    }
    case PlanForm::profile: return fmt::format("vLLM: --moe-pruned-experts-profile {}\n", flags.output);
    case PlanForm::llm_compressor: break;
  }
  return {};
}

void run_export(const Session& session, const ExportFlags& flags) {
  const PlanForm form = plan_form_from_name(flags.form);
  const Plan plan = read_plan(flags.plan);
  std::optional<Scores> scores;
  if (!flags.scores.empty()) scores = read_expert_scores(flags.scores);
  write_file_atomically(flags.output, export_plan(plan, form, scores ? &*scores : nullptr));
  nlohmann::ordered_json json{{"form", flags.form}, {"file", flags.output}, {"experts", plan.experts}, {"keep", plan.keep},
                              {"layers", plan.layers.size()}};
  if (form == PlanForm::vllm_ascend) json["expert_prune_ratio"] = expert_prune_ratio(plan);
  if (form == PlanForm::vllm_ascend) session.note("note: no release of vllm-ascend reads this yet (its pull request 12525, for Qwen3-MoE)");
  if (form == PlanForm::profile) session.note("note: no release of vLLM reads this yet (its pull requests 42613 and 37824)");
  session.print(json, fmt::format("{} of {} experts stay in each of {} layers: {}\n{}", keep_text(plan), plan.experts,
                                  plan.layers.size(), flags.output, usage(flags, form, expert_prune_ratio(plan))));
}

void add_plan_export(CLI::App& plans, Session& session) {
  CLI::App* command = add_command(plans, session, "export", "Write a plan in the form of another tool",
                                  "moetrim plans export plan.json --form vllm-ascend --scores scores.safetensors -o experts.jsonl");
  auto flags = std::make_shared<ExportFlags>();
  command->add_option("plan", flags->plan, "Plan file, which does nothing but drop experts")->required();
  add_form(*command, flags->form);
  command->add_option("--scores", flags->scores, "With vllm-ascend: scores of moetrim score -o, which order the experts");
  command->add_option("-o,--output", flags->output, "File to write")->required();
  command->callback([&session, flags] { session.run = [&session, flags] { run_export(session, *flags); }; });
}

void run_import(const Session& session, const ImportFlags& flags) {
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Plan plan = import_plan(describe(checkpoint), flags.file, plan_form_from_name(flags.form), flags.options);
  write_plan(flags.output, plan);
  session.print(plan_to_json(plan), fmt::format("{} of {} experts stay in each of {} layers; plan in {}\n", keep_text(plan), plan.experts,
                                                plan.layers.size(), flags.output));
}

void add_plan_import(CLI::App& plans, Session& session) {
  CLI::App* command = add_command(plans, session, "import", "Make a plan from the file of another tool",
                                  "moetrim plans import report.json --form llm-compressor --checkpoint demo/model -o plan.json");
  auto flags = std::make_shared<ImportFlags>();
  command->add_option("file", flags->file, "File of that tool")->required();
  add_form(*command, flags->form);
  command->add_option("--checkpoint", flags->checkpoint, "Checkpoint folder whose experts the file names")->required();
  command->add_option("--expert-prune-ratio", flags->options.expert_prune_ratio,
                      "With vllm-ascend: the ratio that it is given beside the file; it keeps the first E (1 - ratio) experts, rounded down");
  command->add_flag("--by-layer", flags->options.by_layer, "Layers may keep different numbers of experts; see docs/runtimes.md for who reads that");
  command->add_option("-o,--output", flags->output, "File for the plan")->required();
  command->callback([&session, flags] { session.run = [&session, flags] { run_import(session, *flags); }; });
}

}  // namespace

void add_plans(CLI::App& app, Session& session) {
  CLI::App* plans = app.add_subcommand("plans", "Plans to and from the forms of other tools");
  plans->require_subcommand(1);
  plans->footer(
      "Example:\n  moetrim plans export plan.json --form profile -o pruned_experts.json\n"
      "  moetrim plans import report.json --form llm-compressor --checkpoint demo/model -o plan.json");
  add_plan_export(*plans, session);
  add_plan_import(*plans, session);
}

}  // namespace moetrim::cli
