// moetrim calibrate: demonstrations through a checkpoint to statistics.

#include <algorithm>
#include <array>
#include <sstream>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/command.h"
#include "cli/ranks.h"
#include "cli/sequential.h"
#include "cli/stages.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/forward.h"
#include "moetrim/suggest.h"

namespace moetrim::cli {

void CalibrateFlags::add(CLI::App& command) {
  task.add(command);
  run.add(command);
  command.add_option("--statistics", statistics,
                     "Several with commas between them. default: all first-order statistics, always there; second-order: also the reverse "
                     "sweep, for scores of atomic experts; vectors: mean outputs, covariance of router logits and extremes; all-experts: "
                     "also what every expert makes of every token; quantisation: also the error of experts at 1 to 4 bits; "
                     "row-importance: second-order, and what rewrite --low-rank can choose rows by; inputs: squares of what every "
                     "linear layer reads, for `moetrim imatrix write`; none: the forward pass alone, for timing")->capture_default_str();
  command.add_option("--marker", markers, "With vectors: count apart the tokens of this text, as written and behind a space; repeatable")
      ->allow_extra_args(false);
  command.add_option("--activation-samples", activation_samples,
                     "With all-experts: keep the activations of N tokens (drawn by a hash), for alignment [128]")->check(CLI::NonNegativeNumber);
  command.add_option("--all-experts-tokens", all_experts_tokens,
                     "With all-experts: run every expert only on the first N counted tokens of a demonstration; 0: on all")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--low-rank", low_rank, "With row-importance: rank of the factors beside which rows are to stay")
      ->check(CLI::PositiveNumber);
  command.add_option("--max-disk", max_disk, "Disk for hidden states between layers, second order only, for example 200GiB");
  command.add_option("--tcess-top-k", tcess_top_k, "k of PreMoe's marks on raw logits (official variant)")->capture_default_str();
  command.add_option("--tcess-threshold", tcess_threshold, "r of PreMoe's marks: the least share that counts; -1: all count")
      ->check(CLI::Range(-1.0, 1.0))->capture_default_str();
  command.add_option("--mtp", mtp, "Multi-token-prediction blocks: measured if they are to be pruned, else left alone")
      ->check(CLI::IsMember({"prune", "keep", "drop"}))->capture_default_str();
  command.add_option("--trace", trace, "Also record the routing of up to N tokens one by one")->check(CLI::NonNegativeNumber);
}

namespace {

constexpr std::array<std::string_view, 8> kKinds{"default",      "second-order",   "vectors", "all-experts",
                                                 "quantisation", "row-importance", "inputs",  "none"};

std::vector<std::string> kinds_of(const std::string& list) {
  std::vector<std::string> kinds;
  std::stringstream in(list);
  for (std::string kind; std::getline(in, kind, ',');) {
    kinds.push_back(kind);
    if (std::find(kKinds.begin(), kKinds.end(), kind) != kKinds.end()) continue;
    throw UsageError(fmt::format("--statistics: unknown kind {}{}; expected some of {}", in_quotes(kind), did_you_mean(kind, kKinds),
                                 fmt::join(kKinds, ", ")));
  }
  if (kinds.empty()) throw UsageError("--statistics: expected at least one kind");
  return kinds;
}

/// A text's tokens as it is written and behind a space; once where the space is a token of its own.
StatisticsManifest::Vectors::Marker read_marker(const std::string& text, const Tokenizer& tokenizer) {
  StatisticsManifest::Vectors::Marker marker{.text = text, .spellings = {tokenizer.encode(text, false)}};
  const auto& alone = marker.spellings.front();
  if (alone.empty()) throw UsageError(fmt::format("--marker {}: the text has no tokens", in_quotes(text)));
  const auto spaced = tokenizer.encode(" " + text, false);
  const auto tail = static_cast<std::ptrdiff_t>(std::min(alone.size(), spaced.size()));
  if (!std::equal(spaced.end() - tail, spaced.end(), alone.begin(), alone.end())) marker.spellings.push_back(spaced);
  return marker;
}

}  // namespace

bool CalibrateFlags::wants(std::string_view kind) const {
  const auto kinds = kinds_of(statistics);
  const auto listed = [&](std::string_view name) { return std::find(kinds.begin(), kinds.end(), name) != kinds.end(); };
  return listed(kind) || (kind == "second-order" && listed("row-importance"));
}

void CalibrateFlags::check() const {
  if (wants("none") && statistics != "none") throw UsageError("--statistics none measures nothing; it stands alone");
  if (!max_disk.empty() && !wants("second-order")) throw UsageError("--max-disk is for --statistics second-order");
  if ((activation_samples || all_experts_tokens > 0) && !wants("all-experts")) {
    throw UsageError("--activation-samples and --all-experts-tokens are for --statistics all-experts");
  }
  if (wants("row-importance") != (low_rank > 0)) {
    throw UsageError("--statistics row-importance and --low-rank belong together: rows matter beside factors of one rank");
  }
  const bool vectors = wants("vectors") || wants("all-experts") || wants("quantisation");
  if (!markers.empty() && !vectors) throw UsageError("--marker is for --statistics vectors");
}

std::optional<StatisticsManifest::Vectors> CalibrateFlags::vectors(const std::filesystem::path& checkpoint) const {
  StatisticsManifest::Vectors out;
  out.all_experts = wants("all-experts");
  out.quantisation = wants("quantisation");
  if (!wants("vectors") && !out.all_experts && !out.quantisation) return std::nullopt;
  out.all_experts_tokens = all_experts_tokens;
  if (out.all_experts) out.activation_samples = activation_samples.value_or(128);
  if (markers.empty()) return out;
  const Tokenizer tokenizer = Tokenizer::open(checkpoint);
  for (const std::string& text : markers) {
    const auto same = [&](const auto& marker) { return marker.text == text; };
    if (std::any_of(out.markers.begin(), out.markers.end(), same)) {
      throw UsageError("--marker " + in_quotes(text) + " is given twice");
    }
    out.markers.push_back(read_marker(text, tokenizer));
  }
  return out;
}

CalibrateOptions CalibrateFlags::options(const Session& session, const std::filesystem::path& checkpoint) const {
  check();
  CalibrateOptions options;
  run.apply(options, session, "calibrate");
  options.count = task.count_value();
  options.second_order = wants("second-order");
  options.vectors = vectors(checkpoint);
  options.inputs = wants("inputs");
  options.row_rank = low_rank;
  if (!max_disk.empty()) options.max_disk = parse_bytes(max_disk);
  options.tcess_top_k = tcess_top_k;
  options.tcess_threshold = tcess_threshold;
  options.mtp = mtp == "prune";
  options.trace_tokens = trace;
  options.settings = {{"samples", task.samples},
                      {"shuffle", task.shuffle ? nlohmann::ordered_json(*task.shuffle) : nlohmann::ordered_json()},
                      {"max_tokens", task.max_tokens}};
  if (task.split_by_tag) options.settings["split_by_tag"] = true;  // a task and its tags must not be added up
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

/// What a sequential calibration reads twice.
std::string describe_reread(const CalibrateEstimate& e) {
  return fmt::format("sequential: the experts of a layer do not fit beside the tokens; up to {} of them are read a second time, "
                     "which a larger --max-memory saves", human_bytes(e.reread_bytes));
}

void print_estimate(const Session& session, const CalibrateEstimate& e, const MachineRates& rates) {
  nlohmann::ordered_json json{{"tokens", e.tokens},
                                    {"passes", e.groups},
                                    {"peak_memory_bytes", e.peak_memory_bytes},
                                    {"read_bytes", e.read_bytes},
                                    {"reread_bytes", e.reread_bytes},
                                    {"disk_bytes", e.disk_bytes},
                                    {"boundary_bytes", e.boundary_bytes},
                                    {"boundary_step", e.boundary_step}};
  const std::string time = add_time(e.operations, e.read_bytes, rates, json);
  std::string boundaries;
  if (e.reread_bytes > 0) boundaries += describe_reread(e) + "\n";
  if (e.boundary_step > 0) boundaries += "states   " + describe_boundaries(e) + "\n";
  session.print(json, fmt::format("tokens   {}\npasses   {} over the weights{}\nmemory   {} at most\nread     {} at most\n"
                                  "disk     {} at most\n{}{}",
                                  e.tokens, e.groups, e.groups > 1 ? " (hidden states of all tokens do not fit at once)" : "",
                                  human_bytes(e.peak_memory_bytes), human_bytes(e.read_bytes), human_bytes(e.disk_bytes),
                                  boundaries, time));
}

/// --sequential and what says which experts stay
struct SequentialFlags {
  bool on = false;
  PlanFlags plan;
  std::optional<std::string> variant;
  std::optional<std::uint64_t> seed;

  void add(CLI::App& command) {
    command.add_flag("--sequential", on,
                     "Measure every layer behind layers that keep only what --method and --keep leave of them, as plan would; in "
                     "the same single read of the checkpoint");
    command.add_option("--method", plan.score.method,
                       "With --sequential: scoring method, or several as in easy-ep+reap; see score --help");
    command.add_option("--keep", plan.keep, "With --sequential: experts of every layer that stay, as for plan");
    command.add_option("--task-weight", plan.score.tasks,
                       "With --sequential: choose for these tasks alone, NAME or NAME=WEIGHT; default: all with weight 1")
        ->allow_extra_args(false);
    command.add_option("--variant", variant, "With --sequential: executed or official, as for plan")
        ->check(CLI::IsMember({"executed", "official"}));
    command.add_option("--seed", seed, "With --sequential: of the random method");
    command.add_option("--protect", plan.protect,
                       "With --sequential: experts that stay whatever their score, LAYER:EXPERT,EXPERT; repeatable")
        ->allow_extra_args(false);
    command.add_flag("--regroup", plan.regroup,
                     "With --sequential: pruned routers give up their groups of experts, as for plan");
  }

  bool any() const {
    return variant || seed || plan.regroup || !plan.score.method.empty() || !plan.keep.empty() || !plan.score.tasks.empty() ||
           !plan.protect.empty();
  }

  /// The options of a plan. @throws UsageError when they are there without --sequential, or ask for more than one layer says
  PlanFlags checked() const {
    PlanFlags out = plan;
    if (variant) out.score.variant = *variant;
    if (seed) out.score.seed = *seed;
    if (on) {
      check_sequential(out);
    } else if (any()) {
      throw UsageError("--method, --keep, --task-weight, --variant, --seed, --protect and --regroup are for --sequential; "
                       "without it plan takes them");
    }
    return out;
  }
};

struct Flags : CalibrateFlags {
  std::string folder, output, slice;
  SequentialFlags sequential;
  bool dry_run = false;
};

void check_first(const Flags& flags) {
  flags.check();
  flags.sequential.checked();
  if (flags.sequential.on && flags.wants("none")) {
    throw UsageError("--sequential chooses by what is measured; leave out --statistics none");
  }
  const bool measures = flags.statistics != "none";
  if (measures != flags.output.empty() || flags.dry_run) return;
  throw UsageError(measures ? "-o is required: the folder for the statistics, for example -o math.stats"
                            : "--statistics none writes nothing; leave out -o");
}

CalibrateOptions options_of(const Session& session, const Flags& flags, const RankGroup* ranks) {
  CalibrateOptions options = flags.options(session, flags.folder);
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
  const auto tasks = read_tasks(flags.task, flags.folder, flags.task.task_options(model.vocabulary));
  CalibrateOptions options = options_of(session, flags, ranks);
  if (flags.sequential.on) {
    if (ranks != nullptr) {
      throw UsageError("--sequential chooses from all demonstrations, which none of several processes has; run one process");
    }
    make_sequential(flags.sequential.checked(), model, tasks, options);
  }
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
  if (options.sequential) {
    const CalibrateEstimate estimate = estimate_calibration(model, tasks, options, flags.output);
    if (estimate.reread_bytes > 0) session.note(describe_reread(estimate));
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
  flags->sequential.add(*command);
  command->add_option("-o,--output", flags->output, "Folder for the statistics, conventionally NAME.stats");
  command->add_option("--slice", flags->slice, "Measure the i-th of n shares of the demonstrations, i/n, for merge-statistics");
  command->add_flag("--dry-run", flags->dry_run, "Say tokens, memory, bytes and time; run nothing");
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      check_first(*flags);
      with_ranks(session, [&](RankGroup* ranks) { run_calibrate(session, *flags, ranks); });
    };
  });
}

}  // namespace moetrim::cli
