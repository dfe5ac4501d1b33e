// moetrim rewrite: a checkpoint and a plan to a new checkpoint, and on request its dequantised twin.

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/progress.h"
#include "cli/rewrite_flags.h"
#include "cli/served_gguf.h"
#include "cli/stages.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/gguf_rewrite.h"
#include "moetrim/plan.h"
#include "moetrim/runtimes.h"

namespace moetrim::cli {

namespace {

/// `also` is that of the twin, where there is one.
Outcome describe_estimate(const ExportEstimate& e, const std::optional<ExportEstimate>& also, const std::string& twin) {
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
  text += fmt::format("disk     {} needed, {} free\nmemory   {}\n", human_bytes(disk), human_bytes(e.free_disk_bytes), human_bytes(memory));
  return {json, text};
}

Outcome describe_result(const Checkpoint& before, const Plan& plan, const ExportRequest& request, const TwinResult& result) {
  const ExportResult& pruned = result.pruned;
  nlohmann::ordered_json json{{"checkpoint", pruned.folder.string()},
                              {"bytes", pruned.tensor_bytes},
                              {"before_bytes", before.total_bytes()},
                              {"shards", pruned.shards},
                              {"reused_shards", pruned.reused_shards},
                              {"awaited_shards", pruned.awaited_shards},
                              {"experts", plan.keep},
                              {"warnings", request.warnings}};
  if (plan.counts == LayerCounts::listed) json["experts_in_all"] = kept_experts(plan);
  if (request.record.contains("slim")) json["slim"] = request.record["slim"];
  if (pruned.awaited_shards > 0) {
    return {json, fmt::format("{} files written, {} were there; {} of other slices are not finished, and the one that is last "
                              "completes {}\n", pruned.written_shards, pruned.reused_shards,
                              pruned.awaited_shards, pruned.folder.string())};
  }
  const bool mapped = merges(plan) && plan.router == MergedRouter::map;
  std::string text = fmt::format("{} {} {} {}, {} of {}, in {}\n", keep_text(plan), plan.keep > plan.experts ? "for" : "of", plan.experts,
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
  return {json, text};
}

/// The checkpoint and its dequantised twin as they would be served.
void require_runtimes(const std::vector<std::string>& runtimes, const Model& model, const Plan& plan, Mtp mtp,
                      bool factored, bool twin) {
  const auto targets = parse_runtimes(runtimes);
  if (targets.empty()) return;
  ServedModel served = served_model(model, plan, mtp);
  served.listed_widths = served.listed_widths || factored;
  ServedModel dequantised = served;
  dequantised.quant = ServedQuantisation{.name = "bf16"};
  for (const RuntimeTarget& target : targets) {
    RuntimeCheck check = check_runtime(served, target);
    check_export(check, model, &plan, mtp);
    require_runtime(check);
    if (twin) require_runtime(check_runtime(dequantised, target));
  }
}

}  // namespace

void RewriteFlags::add_common(CLI::App& command) {
  command_ = &command;
  command.add_option("--shard-size", shard_size, "Largest file, for example 5GB or 500MiB")->capture_default_str();
  command.add_option("--writers", writers, "Threads that copy; the bytes are the same. Default: 2; 1 for a GGUF file, where a second one mostly waits")
      ->check(CLI::Range(1, 256));
  command.add_option("--mtp", mtp, "Multi-token-prediction blocks: prune as the plan says, keep whole, or drop")
      ->check(CLI::IsMember({"prune", "keep", "drop"}))->capture_default_str();
  command.add_option("--also-dtype", also_dtype,
                     "Write a second checkpoint beside the output, OUTPUT-bf16, with quantised weights dequantised: bf16");
  command.add_flag("--overwrite", overwrite, "Replace the output if moetrim wrote it");
}

void RewriteFlags::add(CLI::App& command) {
  add_common(command);
  command.add_option("--slice", slice,
                     "Write the i-th of n shares of the files, i/n, for runs on several machines with one file system; the run "
                     "that finds all files finished completes the folder");
  command.add_option("--statistics", statistics,
                     "Statistics folder that the plan was made from, where it aligns merged experts by activations or replaces experts "
                     "by constants");
  CLI::Option* rank = command.add_option("--low-rank", low_rank,
                                         "Replace matrices of merged experts, or of all where the plan merges none, by factors of this rank "
                                         "and the rows that those miss most")->check(CLI::PositiveNumber);
  command.add_option("--sparse-rows", sparse_rows, "With --low-rank: share of the matrices' entries, in whole rows, that stays")
      ->needs(rank)->capture_default_str();
  command.add_option("--low-rank-form", low_rank_form,
                     "With --low-rank: dense multiplies factors out, and the checkpoint loads everywhere; factored stores them, which is "
                     "smaller and loads in transformers with trust_remote_code=True")
      ->check(CLI::IsMember({"dense", "factored"}))->needs(rank)->capture_default_str();
  command.add_option("--row-importance", row_importance,
                     "With --low-rank: rows stay by what they matter to the loss, from this folder of calibrate --statistics "
                     "row-importance on the same checkpoint; without it, by what the factors miss")->needs(rank);
  add_runtimes(command, runtimes);
  command.add_flag("--allow-other-checkpoint", other, "Use a plan that was made for another checkpoint of the same shape");
}

Outcome RewriteFlags::run(const Session& session, const Plan& plan) const {
  if (is_gguf_file(checkpoint)) return run_gguf(session, plan);
  std::optional<Dtype> dtype;
  if (!also_dtype.empty()) dtype = parse_twin_dtype(also_dtype);
  const Checkpoint source = Checkpoint::open(checkpoint);
  const Model model = describe(source);
  ExportOptions options{.shard_bytes = parse_bytes(shard_size), .overwrite = overwrite, .writers = writers.value_or(2), .stop = &stop_requested};
  if (!slice.empty()) {
    const Slice share = parse_slice(slice);
    options.share = ShardShare{.number = share.number, .count = share.count};
  }
  const PrepareOptions prepare{.allow_other_checkpoint = other, .mtp = parse_mtp(mtp), .sources = {.statistics = statistics},
                               .low_rank = low_rank, .low_rank_form = parse_low_rank_form(low_rank_form),
                               .sparse_rows = Share::parse(sparse_rows, "--sparse-rows"), .row_importance = row_importance,
                               .threads = options.writers, .stop = &stop_requested};
  check_target(source, output, options);
  const bool factored = low_rank > 0 && prepare.low_rank_form == LowRankForm::factored;
  require_runtimes(runtimes, model, plan, prepare.mtp, factored, dtype.has_value());
  const ExportRequest request = prepare_export(model, plan, kVersion, prepare);
  std::optional<TwinRequest> twin;
  if (dtype) twin = prepare_twin(model, plan, request, *dtype, kVersion, prepare);
  if (dry_run) {
    std::optional<ExportEstimate> also;
    if (twin) also = describe_twin(source, *twin, output, options);
    return describe_estimate(describe_rewrite(source, request, output, options), also, twin_target(output).string());
  }
  Progress line("rewrite", "B", session.quiet);
  const auto progress = [&](const ExportProgress& p) {
    line.update(static_cast<double>(p.done_bytes), static_cast<double>(p.total_bytes));
  };
  const TwinResult result = twin ? export_with_twin(source, request, *twin, output, options, progress)
                                 : TwinResult{export_checkpoint(source, request, output, options, progress), {}};
  for (const auto& warning : request.warnings) session.note("note: " + warning);
  if (result.pruned.awaited_shards == 0) {
    session.note(fmt::format("how to serve and evaluate it: {}", (result.pruned.folder / "README.md").string()));
  }
  return describe_result(source, plan, request, result);
}

void add_rewrite(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "rewrite", "Write the checkpoint that a plan describes",
                                  "moetrim rewrite demo/model --plan plan.json -o pruned");
  auto flags = std::make_shared<RewriteFlags>();
  auto plan = std::make_shared<std::string>();
  command->add_option("checkpoint", flags->checkpoint, "Checkpoint folder, or a GGUF file")->required();
  command->add_option("--plan", *plan, "Plan file")->required();
  command->add_option("-o,--output", flags->output, "Folder for the new checkpoint, which must not exist, or be empty; or OUT.gguf for a GGUF file")->required();
  flags->add(*command);
  command->add_flag("--dry-run", flags->dry_run, "Say bytes, files, disk and memory; write nothing");
  command->callback([&session, flags, plan] {
    session.run = [&session, flags, plan] {
      const Outcome outcome = flags->run(session, read_plan(*plan));
      session.print(outcome.json, outcome.text);
    };
  });
}

}  // namespace moetrim::cli
