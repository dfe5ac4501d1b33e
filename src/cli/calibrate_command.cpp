// moetrim calibrate: demonstrations through a checkpoint to statistics.

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/ranks.h"
#include "cli/stages.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/forward.h"

namespace moetrim::cli {

void CalibrateFlags::add(CLI::App& command) {
  task.add(command);
  run.add(command);
  command.add_option("--statistics", statistics, "default: all first-order statistics; second-order: also the reverse sweep, for scores of atomic experts; none: the "
                 "forward pass alone, for timing")
      ->check(CLI::IsMember({"default", "second-order", "none"}))->capture_default_str();
  command.add_option("--max-disk", max_disk, "Disk for hidden states between layers, second order only, for example 200GiB");
  command.add_option("--tcess-top-k", tcess_top_k, "k of PreMoe's marks on raw logits (official variant)")->capture_default_str();
  command.add_option("--tcess-threshold", tcess_threshold, "r of PreMoe's marks: the least share that counts; -1: all count")
      ->check(CLI::Range(-1.0, 1.0))->capture_default_str();
  command.add_option("--mtp", mtp, "Multi-token-prediction blocks: measured if they are to be pruned, else left alone")
      ->check(CLI::IsMember({"prune", "keep", "drop"}))->capture_default_str();
  command.add_option("--trace", trace, "Also record the routing of up to N tokens one by one")->check(CLI::NonNegativeNumber);
}

CalibrateOptions CalibrateFlags::options(const Session& session) const {
  CalibrateOptions options;
  run.apply(options, session, "calibrate");
  options.count = task.count_value();
  options.second_order = statistics == "second-order";
  if (!max_disk.empty() && !options.second_order) throw UsageError("--max-disk is for --statistics second-order");
  if (!max_disk.empty()) options.max_disk = parse_bytes(max_disk);
  options.tcess_top_k = tcess_top_k;
  options.tcess_threshold = tcess_threshold;
  options.mtp = mtp == "prune";
  options.trace_tokens = trace;
  options.settings = {{"samples", task.samples},
                      {"shuffle", task.shuffle ? nlohmann::ordered_json(*task.shuffle) : nlohmann::ordered_json()},
                      {"max_tokens", task.max_tokens}};
  options.tool_version = kVersion;
  return options;
}

std::string add_time(double operations, std::uint64_t read_bytes, const MachineRates& rates, nlohmann::ordered_json& json) {
  const double seconds = rates.seconds(operations, read_bytes);
  json["operations"] = operations;
  json["operations_per_second"] = rates.operations_per_second;
  json["read_bytes_per_second"] = rates.bytes_per_second;
  json["seconds"] = seconds;
  return fmt::format("time     about {:.0f} s, at {:.0f} GFLOP/s and {}/s read\n", seconds, rates.operations_per_second / 1e9,
                     human_bytes(static_cast<std::uint64_t>(rates.bytes_per_second)));
}

namespace {

/// What the reverse sweep keeps between the sweeps.
std::string describe_boundaries(const CalibrateEstimate& e) {
  const std::string which = e.boundary_step == 1 ? "before every layer"
                                                 : fmt::format("before every {} layers, those between are computed again", e.boundary_step);
  return fmt::format("{} on disk for hidden states {}, in {} pass(es)", human_bytes(e.boundary_bytes), which, e.groups);
}

void print_estimate(const Session& session, const CalibrateEstimate& e, const MachineRates& rates) {
  nlohmann::ordered_json json{{"tokens", e.tokens},
                                    {"passes", e.groups},
                                    {"peak_memory_bytes", e.peak_memory_bytes},
                                    {"read_bytes", e.read_bytes},
                                    {"disk_bytes", e.disk_bytes},
                                    {"boundary_bytes", e.boundary_bytes},
                                    {"boundary_step", e.boundary_step}};
  const std::string time = add_time(e.operations, e.read_bytes, rates, json);
  std::string boundaries;
  if (e.boundary_step > 0) boundaries = "states   " + describe_boundaries(e) + "\n";
  session.print(json, fmt::format("tokens   {}\npasses   {} over the weights{}\nmemory   {} at most\nread     {} at most\n"
                                  "disk     {} at most\n{}{}",
                                  e.tokens, e.groups, e.groups > 1 ? " (hidden states of all tokens do not fit at once)" : "",
                                  human_bytes(e.peak_memory_bytes), human_bytes(e.read_bytes), human_bytes(e.disk_bytes),
                                  boundaries, time));
}

struct Flags : CalibrateFlags {
  std::string folder, output, slice;
  bool dry_run = false;
};

void check_output(const Flags& flags) {
  const bool measures = flags.statistics != "none";
  if (measures != flags.output.empty() || flags.dry_run) return;
  throw UsageError(measures ? "-o is required: the folder for the statistics, for example -o math.stats"
                            : "--statistics none writes nothing; leave out -o");
}

CalibrateOptions options_of(const Session& session, const Flags& flags, const RankGroup* ranks) {
  CalibrateOptions options = flags.options(session);
  if (!flags.slice.empty()) {
    const Slice slice = parse_slice(flags.slice);
    options.share = {.number = slice.number, .count = slice.count};
  }
  if (ranks == nullptr) return options;
  if (!flags.slice.empty()) throw UsageError("--slice is for processes that do not know of each other; leave it out with torchrun or srun");
  take_share(options, ranks->place());
  return options;
}

void report(const Session& session, const StatisticsManifest& manifest, const std::string& output) {
  std::string text;
  if (manifest.part) text += describe_part(*manifest.part) + "\n";
  for (const auto& task : manifest.tasks) {
    text += fmt::format("{}: {} demonstrations, {} tokens, {} counted\n", task.name, task.demonstrations, task.tokens,
                        task.counted_tokens);
    if (manifest.expert_width > 0 && task.predicted_tokens > 0) {
      text += fmt::format("  loss {:.4f} nats a token, over {} predicted\n", task.loss / static_cast<double>(task.predicted_tokens),
                          task.predicted_tokens);
    }
  }
  session.print({{"statistics", output}, {"manifest", manifest_to_json(manifest)}, {"reading", session.reading_json()}},
                text + "statistics in " + output + "\n");
}

void run_calibrate(const Session& session, const Flags& flags, RankGroup* ranks) {
  const Checkpoint checkpoint = Checkpoint::open(flags.folder);
  const Model model = describe(checkpoint);
  const auto tasks = read_tasks(flags.task.files, flags.folder, flags.task.task_options(model.vocabulary));
  const CalibrateOptions options = options_of(session, flags, ranks);
  if (model.nested_config && !model.family->untouched.empty()) {
    session.note("note: only text is measured; experts that images or sound would use may look unused");
  }
  if (flags.dry_run) {
    const CalibrateEstimate estimate = estimate_calibration(model, tasks, options, flags.output);
    if (reports(ranks)) print_estimate(session, estimate, measure_rates(model, options));
    return;
  }
  if (flags.statistics == "none") {
    run_forward_only(model, tasks, options);
    if (reports(ranks)) session.print({{"statistics", nullptr}, {"reading", session.reading_json()}}, "forward pass done, nothing written\n");
    return;
  }
  if (options.second_order) {
    session.note("second order: " + describe_boundaries(estimate_calibration(model, tasks, options, flags.output)));
  }
  if (ranks == nullptr) return report(session, calibrate(model, tasks, options, flags.output), flags.output);
  if (const auto manifest = calibrate_by_ranks(*ranks, model, tasks, options, flags.output)) report(session, *manifest, flags.output);
}

}  // namespace

void add_calibrate(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "calibrate", "Run demonstrations through a checkpoint and measure every expert",
                                  "moetrim calibrate demo/model --task calibration/arithmetic.jsonl -o arithmetic.stats");
  auto flags = std::make_shared<Flags>();
  command->add_option("checkpoint", flags->folder, "Checkpoint folder")->required();
  flags->add(*command);
  command->add_option("-o,--output", flags->output, "Folder for the statistics, conventionally NAME.stats");
  command->add_option("--slice", flags->slice, "Measure the i-th of n shares of the demonstrations, i/n, for merge-statistics");
  command->add_flag("--dry-run", flags->dry_run, "Say tokens, memory, bytes and time; run nothing");
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      check_output(*flags);
      with_ranks(session, [&](RankGroup* ranks) { run_calibrate(session, *flags, ranks); });
    };
  });
}

}  // namespace moetrim::cli
