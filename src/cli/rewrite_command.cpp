// moetrim rewrite: a checkpoint and a plan to a new checkpoint, and on request its dequantised twin.

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/progress.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/plan.h"

namespace moetrim::cli {

namespace {

struct RewriteFlags {
  std::string checkpoint, plan, output, shard_size = "5GB", mtp = "prune", also_dtype, slice, statistics, sparse_rows = "0.1",
              row_importance, low_rank_form = "dense";
  int writers = 2, low_rank = 0;
  bool overwrite = false, other = false, dry_run = false;
};

/// `also` is that of the twin, where there is one.
void print_estimate(const Session& session, const ExportEstimate& e, const std::optional<ExportEstimate>& also,
                    const std::string& twin) {
  const std::uint64_t disk = e.disk_bytes + (also ? also->disk_bytes : 0);
  const std::uint64_t memory = std::max(e.peak_memory_bytes, also ? also->peak_memory_bytes : 0);
  nlohmann::ordered_json json{{"before_bytes", e.before_bytes},       {"after_bytes", e.after_bytes},
                              {"before_parameters", e.before_parameters}, {"after_parameters", e.after_parameters},
                              {"shards", e.shards},                   {"disk_bytes", disk},
                              {"free_disk_bytes", e.free_disk_bytes}, {"peak_memory_bytes", memory}};
  std::string text = fmt::format("weights  {} to {}\nfiles    {}\n", human_bytes(e.before_bytes), human_bytes(e.after_bytes), e.shards);
  if (also) {
    json["also"] = {{"checkpoint", twin}, {"bytes", also->after_bytes}, {"shards", also->shards}};
    text += fmt::format("also     {}, files {}, in {}\n", human_bytes(also->after_bytes), also->shards, twin);
  }
  session.print(json, text + fmt::format("disk     {} needed, {} free\nmemory   {}\n", human_bytes(disk),
                                         human_bytes(e.free_disk_bytes), human_bytes(memory)));
}

void print_result(const Session& session, const Checkpoint& before, const Plan& plan, const ExportRequest& request,
                  const TwinResult& result) {
  const ExportResult& pruned = result.pruned;
  nlohmann::ordered_json json{{"checkpoint", pruned.folder.string()},
                              {"bytes", pruned.tensor_bytes},
                              {"before_bytes", before.total_bytes()},
                              {"shards", pruned.shards},
                              {"reused_shards", pruned.reused_shards},
                              {"awaited_shards", pruned.awaited_shards},
                              {"experts", plan.keep},
                              {"warnings", request.warnings}};
  if (request.record.contains("slim")) json["slim"] = request.record["slim"];
  if (pruned.awaited_shards > 0) {
    return session.print(json, fmt::format("{} files written, {} were there; {} of other slices are not finished, and the one that is "
                                           "last completes {}\n", pruned.written_shards, pruned.reused_shards,
                                           pruned.awaited_shards, pruned.folder.string()));
  }
  const bool mapped = merges(plan) && plan.router == MergedRouter::map;
  std::string text = fmt::format("{} {} {} {}, {} of {}, in {}\n", plan.keep, plan.keep > plan.experts ? "for" : "of", plan.experts,
                                 mapped ? "router rows, experts merged" : "experts", human_bytes(pruned.tensor_bytes),
                                 human_bytes(before.total_bytes()), pruned.folder.string());
  if (request.record.contains("slim")) {
    const auto& slim = request.record["slim"];
    text += fmt::format("width {} to {} of {}, {} of {} atomic experts\n", slim["least_width"].dump(),
                        slim["most_width"].dump(), slim["width"].dump(), slim["kept_atoms"].dump(), slim["atoms"].dump());
  }
  if (!result.twin.folder.empty()) {
    const ExportResult& twin = result.twin;
    json["also"] = {{"checkpoint", twin.folder.string()}, {"bytes", twin.tensor_bytes}, {"shards", twin.shards}};
    text += fmt::format("dequantised, {}, in {}\n", human_bytes(twin.tensor_bytes), twin.folder.string());
  }
  session.print(json, text);
}

void run_rewrite(const Session& session, const RewriteFlags& flags) {
  std::optional<Dtype> dtype;
  if (!flags.also_dtype.empty()) dtype = parse_twin_dtype(flags.also_dtype);
  const Plan plan = read_plan(flags.plan);
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Model model = describe(checkpoint);
  ExportOptions options{.shard_bytes = parse_bytes(flags.shard_size), .overwrite = flags.overwrite, .writers = flags.writers,
                        .stop = &stop_requested};
  if (!flags.slice.empty()) {
    const Slice slice = parse_slice(flags.slice);
    options.share = ShardShare{.number = slice.number, .count = slice.count};
  }
  const PrepareOptions prepare{.allow_other_checkpoint = flags.other, .mtp = parse_mtp(flags.mtp),
                               .sources = {.statistics = flags.statistics}, .low_rank = flags.low_rank,
                               .low_rank_form = parse_low_rank_form(flags.low_rank_form),
                               .sparse_rows = Share::parse(flags.sparse_rows, "--sparse-rows"),
                               .row_importance = flags.row_importance, .threads = flags.writers, .stop = &stop_requested};
  check_target(checkpoint, flags.output, options);
  const ExportRequest request = prepare_export(model, plan, kVersion, prepare);
  std::optional<TwinRequest> twin;
  if (dtype) twin = prepare_twin(model, plan, request, *dtype, kVersion, prepare);
  if (flags.dry_run) {
    std::optional<ExportEstimate> also;
    if (twin) also = describe_twin(checkpoint, *twin, flags.output, options);
    return print_estimate(session, describe_rewrite(checkpoint, request, flags.output, options), also,
                          twin_target(flags.output).string());
  }
  Progress line("rewrite", "B", session.quiet);
  const auto progress = [&](const ExportProgress& p) {
    line.update(static_cast<double>(p.done_bytes), static_cast<double>(p.total_bytes));
  };
  const TwinResult result = twin ? export_with_twin(checkpoint, request, *twin, flags.output, options, progress)
                                 : TwinResult{export_checkpoint(checkpoint, request, flags.output, options, progress), {}};
  for (const auto& warning : request.warnings) session.note("note: " + warning);
  print_result(session, checkpoint, plan, request, result);
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
  command->add_option("--writers", flags->writers, "Threads that copy, on one file or on several; the bytes are the same")
      ->check(CLI::Range(1, 256))->capture_default_str();
  command->add_option("--slice", flags->slice,
                      "Write the i-th of n shares of the files, i/n, for runs on several machines with one file system; the run "
                      "that finds all files finished completes the folder");
  command->add_option("--mtp", flags->mtp, "Multi-token-prediction blocks: prune as the plan says, keep whole, or drop")
      ->check(CLI::IsMember({"prune", "keep", "drop"}))->capture_default_str();
  command->add_option("--statistics", flags->statistics,
                      "Statistics folder that the plan was made from, where it aligns merged experts by activations or replaces experts "
                      "by constants");
  CLI::Option* rank = command->add_option("--low-rank", flags->low_rank,
                      "Replace matrices of merged experts, or of all where the plan merges none, by factors of this rank and the rows that "
                      "those miss most")->check(CLI::PositiveNumber);
  command->add_option("--sparse-rows", flags->sparse_rows, "With --low-rank: share of the matrices' entries, in whole rows, that stays")
      ->needs(rank)->capture_default_str();
  command->add_option("--low-rank-form", flags->low_rank_form,
                      "With --low-rank: dense multiplies factors out, and the checkpoint loads everywhere; factored stores them, which is "
                      "smaller and loads in transformers with trust_remote_code=True")
      ->check(CLI::IsMember({"dense", "factored"}))->needs(rank)->capture_default_str();
  command->add_option("--row-importance", flags->row_importance,
                      "With --low-rank: rows stay by what they matter to the loss, from this folder of calibrate --statistics "
                      "row-importance on the same checkpoint; without it, by what the factors miss")->needs(rank);
  command->add_option("--also-dtype", flags->also_dtype,
                      "Write a second checkpoint beside the output, OUTPUT-bf16, with quantised weights dequantised: bf16");
  command->add_flag("--overwrite", flags->overwrite, "Replace the output if moetrim wrote it");
  command->add_flag("--allow-other-checkpoint", flags->other, "Use a plan that was made for another checkpoint of the same shape");
  command->add_flag("--dry-run", flags->dry_run, "Say bytes, files, disk and memory; write nothing");
  command->callback([&session, flags] { session.run = [&session, flags] { run_rewrite(session, *flags); }; });
}

}  // namespace moetrim::cli
