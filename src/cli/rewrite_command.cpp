// moetrim rewrite: a checkpoint and a plan to a new checkpoint.

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/progress.h"
#include "moetrim/export.h"
#include "moetrim/plan.h"

namespace moetrim::cli {

namespace {

struct RewriteFlags {
  std::string checkpoint, plan, output, shard_size = "5GB", mtp = "prune";
  bool overwrite = false, other = false, dry_run = false;
};

void print_estimate(const Session& session, const ExportEstimate& e) {
  const nlohmann::ordered_json json{{"before_bytes", e.before_bytes},       {"after_bytes", e.after_bytes},
                                    {"before_parameters", e.before_parameters}, {"after_parameters", e.after_parameters},
                                    {"shards", e.shards},                   {"disk_bytes", e.disk_bytes},
                                    {"free_disk_bytes", e.free_disk_bytes}, {"peak_memory_bytes", e.peak_memory_bytes}};
  session.print(json, fmt::format("weights  {} to {}\nfiles    {}\ndisk     {} needed, {} free\nmemory   {}\n",
                                  human_bytes(e.before_bytes), human_bytes(e.after_bytes), e.shards, human_bytes(e.disk_bytes),
                                  human_bytes(e.free_disk_bytes), human_bytes(e.peak_memory_bytes)));
}

void run_rewrite(const Session& session, const RewriteFlags& flags) {
  const Plan plan = read_plan(flags.plan);
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Model model = describe(checkpoint);
  const ExportOptions options{.shard_bytes = parse_bytes(flags.shard_size), .overwrite = flags.overwrite};
  const ExportRequest request = prepare_export(model, plan, kVersion, {.allow_other_checkpoint = flags.other, .mtp = parse_mtp(flags.mtp)});
  if (flags.dry_run) return print_estimate(session, describe_rewrite(checkpoint, request, flags.output, options));
  Progress line("rewrite", "B", session.quiet);
  const ExportResult result = export_checkpoint(checkpoint, request, flags.output, options, [&](const ExportProgress& p) {
    line.update(static_cast<double>(p.done_bytes), static_cast<double>(p.total_bytes));
    stop_if_requested();
  });
  for (const auto& warning : request.warnings) session.note("note: " + warning);
  session.print({{"checkpoint", result.folder.string()},
                 {"bytes", result.tensor_bytes},
                 {"before_bytes", checkpoint.total_bytes()},
                 {"shards", result.shards},
                 {"reused_shards", result.reused_shards},
                 {"experts", plan.keep},
                 {"warnings", request.warnings}},
                fmt::format("{} of {} experts, {} of {}, in {}\n", plan.keep, plan.experts, human_bytes(result.tensor_bytes),
                            human_bytes(checkpoint.total_bytes()), result.folder.string()));
}

}  // namespace

void add_rewrite(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "rewrite", "Write the checkpoint that a plan describes",
                                  "moetrim rewrite demo/model --plan plan.json -o pruned");
  auto flags = std::make_shared<RewriteFlags>();
  command->add_option("checkpoint", flags->checkpoint, "Checkpoint folder")->required();
  command->add_option("--plan", flags->plan, "Plan file")->required();
  command->add_option("-o,--output", flags->output, "Folder for the new checkpoint; must not exist, or be empty")->required();
  command->add_option("--shard-size", flags->shard_size, "Largest file, for example 5GB or 500MiB")->capture_default_str();
  command->add_option("--mtp", flags->mtp, "Multi-token-prediction blocks: prune as the plan says, keep whole, or drop")
      ->check(CLI::IsMember({"prune", "keep", "drop"}))->capture_default_str();
  command->add_flag("--overwrite", flags->overwrite, "Replace the output if moetrim wrote it");
  command->add_flag("--allow-other-checkpoint", flags->other, "Use a plan that was made for another checkpoint of the same shape");
  command->add_flag("--dry-run", flags->dry_run, "Say bytes, files, disk and memory; write nothing");
  command->callback([&session, flags] { session.run = [&session, flags] { run_rewrite(session, *flags); }; });
}

}  // namespace moetrim::cli
