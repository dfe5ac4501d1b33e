// moetrim rewrite MODEL.gguf: a plan applied to the bytes of a GGUF file.

#include <array>

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/progress.h"
#include "cli/rewrite_flags.h"
#include "cli/served_gguf.h"
#include "moetrim/error.h"
#include "moetrim/gguf_rewrite.h"

namespace moetrim::cli {

namespace {

/// Options that mean something for a checkpoint folder only, and why.
struct FolderOption {
  const char* name;
  const char* why;
};
constexpr std::array<FolderOption, 8> kFolderOptions{{
    {"--shard-size", "a GGUF model is written as many files as it has"},
    {"--slice", "one run writes a GGUF model"},
    {"--also-dtype", "no value of a GGUF file is converted"},
    {"--statistics", "no value of a GGUF file is computed"},
    {"--low-rank", "no value of a GGUF file is computed"},
    {"--low-rank-form", "no value of a GGUF file is computed"},
    {"--sparse-rows", "no value of a GGUF file is computed"},
    {"--row-importance", "no value of a GGUF file is computed"},
}};

void refuse_folder_options(const CLI::App& command, const std::string& file) {
  for (const auto& [name, why] : kFolderOptions) {
    const CLI::Option* option = command.get_option_no_throw(name);
    if (option != nullptr && option->count() > 0) throw UsageError(fmt::format("{} does not apply to {}: {}", name, file, why));
  }
}

nlohmann::ordered_json names(const std::vector<std::filesystem::path>& files) {
  auto out = nlohmann::ordered_json::array();
  for (const auto& file : files) out.push_back(file.string());
  return out;
}

Outcome describe_estimate(const GgufEstimate& e, const GgufRewrite& rewrite) {
  const nlohmann::ordered_json json{{"before_bytes", e.before_bytes},           {"after_bytes", e.after_bytes},
                                    {"before_parameters", e.before_parameters}, {"after_parameters", e.after_parameters},
                                    {"files", names(e.outputs)},                {"disk_bytes", e.disk_bytes},
                                    {"free_disk_bytes", e.free_disk_bytes},     {"peak_memory_bytes", e.peak_memory_bytes},
                                    {"notes", rewrite.notes}};
  return {json, fmt::format("weights  {} to {}\nfiles    {}\ndisk     {} needed, {} free\nmemory   {}\n", human_bytes(e.before_bytes),
                            human_bytes(e.after_bytes), e.outputs.size(), human_bytes(e.disk_bytes), human_bytes(e.free_disk_bytes),
                            human_bytes(e.peak_memory_bytes))};
}

}  // namespace

Outcome RewriteFlags::run_gguf(const Session& session, const Plan& plan) const {
  refuse_folder_options(*command_, checkpoint);
  const GgufModel source = GgufModel::open(checkpoint);
  const GgufMoe model = describe_gguf(source);
  const auto targets = parse_runtimes(runtimes);
  check_targets_of_gguf(targets, checkpoint);
  const GgufRewrite rewrite = prepare_gguf_rewrite(model, plan, parse_mtp(mtp), other);
  for (const RuntimeTarget& target : targets) require_runtime(check_runtime(served_model(model, plan, parse_mtp(mtp)), target));
  const GgufWriteOptions options{.overwrite = overwrite, .writers = writers.value_or(1), .stop = &stop_requested};
  const GgufEstimate estimate = estimate_gguf(rewrite, output, options);
  if (dry_run) return describe_estimate(estimate, rewrite);
  Progress line("rewrite", "B", session.quiet);
  const auto files = write_gguf(rewrite, output, options, [&](std::uint64_t done, std::uint64_t total) {
    line.update(static_cast<double>(done), static_cast<double>(total));
  });
  for (const auto& note : rewrite.notes) session.note("note: " + note);
  const nlohmann::ordered_json json{{"checkpoint", files.front().string()}, {"bytes", estimate.after_bytes},
                                    {"before_bytes", estimate.before_bytes}, {"files", names(files)},
                                    {"experts", plan.keep},                  {"notes", rewrite.notes}};
  return {json, fmt::format("{} {} {} experts, {} of {}, in {}\n", plan.keep, plan.keep > plan.experts ? "for" : "of", plan.experts,
                            human_bytes(estimate.after_bytes), human_bytes(estimate.before_bytes), files.front().string())};
}

}  // namespace moetrim::cli
