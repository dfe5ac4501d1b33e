// What the sub-commands share.

#include "cli/command.h"

#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/progress.h"
#include "moetrim/error.h"
#include "moetrim/export.h"

namespace moetrim::cli {

std::atomic<bool> stop_requested{false};

void stop_if_requested() {
  if (stop_requested) throw Interrupted("stopped by a signal; repeat the command to go on");
}

namespace {

double seconds(std::int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e9; }

}  // namespace

void Session::print(const nlohmann::ordered_json& object, const std::string& text) const {
  if (reading->bytes > 0) {
    note(fmt::format("read {} of weights in {:.1f} s; computing waited {:.1f} s for them", human_bytes(reading->bytes),
                     seconds(reading->reading_ns), seconds(reading->waited_ns)));
  }
  const std::string out = json ? object.dump(2) + "\n" : text;
  std::fwrite(out.data(), 1, out.size(), stdout);
  if (std::fflush(stdout) != 0) throw Error("cannot write to standard output");
}

nlohmann::ordered_json Session::reading_json() const {
  return {{"bytes", reading->bytes.load()}, {"seconds", seconds(reading->reading_ns)}, {"waited_seconds", seconds(reading->waited_ns)}};
}

void Session::note(const std::string& text) const {
  if (!quiet) fmt::print(stderr, "{}\n", text);
}

void Session::note_part(const StatisticsManifest& manifest) const {
  if (manifest.part) note(fmt::format("note: the statistics hold {} only", describe_part(*manifest.part)));
}

CLI::App* add_command(CLI::App& app, Session& session, const std::string& name, const std::string& description,
                      const std::string& example) {
  CLI::App* command = app.add_subcommand(name, description);
  command->footer("Example:\n  " + example);
  command->add_flag("--json", session.json, "Print one JSON object on standard output and nothing else there");
  command->add_flag("--quiet", session.quiet, "No progress and no notes");
  return command;
}

void RunFlags::add(CLI::App& command) {
  command.add_option("--dtype", dtype, "What activations are rounded to: bf16 or fp32; fp64 to compare with a reference")
      ->check(CLI::IsMember({"fp32", "bf16", "fp64"}))->capture_default_str();
  command.add_option("--device", device, "cpu or cuda:0")->capture_default_str();
  command.add_option("--threads", threads, "Worker threads; 0: all cores")->check(CLI::NonNegativeNumber);
  command.add_option("--max-memory", max_memory, "Memory the process may use, for example 8GiB; default: what is available");
}

void RunFlags::apply(RunOptions& options, const Session& session, const std::string& label) const {
  options.precision = dtype;
  options.device = device;
  options.threads = threads;
  options.max_memory = max_memory.empty() ? 0 : parse_bytes(max_memory);
  options.reading = session.reading.get();
  options.stop = &stop_requested;
  const auto line = std::make_shared<Progress>(label, "token-layers", session.quiet);
  options.progress = [line](std::int64_t done, std::int64_t total) {
    line->update(static_cast<double>(done), static_cast<double>(total));
  };
}

void ScoreFlags::add(CLI::App& command, bool required) {
  std::string names;
  for (const ScoringMethod* known : scoring_methods()) names += (names.empty() ? "" : ", ") + std::string(known->name);
  command.add_option("--method", method,
                     "Scoring method: " + names + "; or several added up, with weights: easy-ep+reap, easy-ep:0.7+reap:0.3")
      ->required(required);
  command.add_option("--variant", variant, "executed: the routing that really ran; official: the published code")
      ->check(CLI::IsMember({"executed", "official"}))->capture_default_str();
  command.add_option("--library-version", library,
                     "Version of transformers that the published code of heapr runs with: 4.56 or 4.51; default: 4.56");
  command.add_option("--seed", seed, "Of the random methods")->capture_default_str();
  command.add_option("--task", tasks, "Score these tasks alone, NAME or NAME=WEIGHT; default: all with weight 1");
}

ScoreOptions ScoreFlags::options() const {
  ScoreOptions out;
  out.variant = variant_from_name(variant);
  out.seed = seed;
  out.library = library;
  return out;
}

std::vector<std::pair<std::string, double>> ScoreFlags::weights() const {
  std::vector<std::pair<std::string, double>> out;
  for (const auto& task : tasks) {
    const auto equals = task.rfind('=');
    if (equals == std::string::npos) {
      out.emplace_back(task, 1.0);
      continue;
    }
    const std::string number = task.substr(equals + 1);
    std::size_t used = 0;
    double weight = 0;
    try {
      weight = std::stod(number, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used == 0 || used != number.size()) {
      throw UsageError(fmt::format("--task {}: \"{}\" is not a number; expected NAME or NAME=WEIGHT", task, number));
    }
    out.emplace_back(task.substr(0, equals), weight);
  }
  return out;
}

Plan plan_to_change(const std::string& file, const StatisticsManifest& manifest, std::string_view method) {
  if (!file.empty()) return read_plan(file);
  Plan plan = whole_plan(manifest);
  plan.method = method;
  return plan;
}

int parse_count(std::string_view text, std::string_view option, int least) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && value >= least) return value;
  throw UsageError(fmt::format("{} \"{}\": expected a number from {}", option, text, least));
}

Slice parse_slice(const std::string& text) {
  Slice slice;
  const char* end = text.data() + text.size();
  const auto number = std::from_chars(text.data(), end, slice.number);
  const bool slash = number.ec == std::errc() && number.ptr != end && *number.ptr == '/';
  const auto count = slash ? std::from_chars(number.ptr + 1, end, slice.count) : number;
  if (!slash || count.ec != std::errc() || count.ptr != end || slice.number < 1 || slice.number > slice.count) {
    throw UsageError(fmt::format("--slice {}: expected i/n with i from 1 to n, for example 2/8", text));
  }
  return slice;
}

std::string describe_part(const StatisticsManifest::Part& part) {
  return fmt::format("share{} {} of {} of the demonstrations", part.shares.size() == 1 ? "" : "s", fmt::join(part.shares, ", "), part.count);
}

std::string human_bytes(std::uint64_t bytes) {
  auto value = static_cast<double>(bytes);
  for (const char* unit : {"B", "KiB", "MiB", "GiB"}) {
    if (value < 1024) return fmt::format("{:.{}f} {}", value, *unit != 'B' && value < 100 ? 2 : 0, unit);
    value /= 1024;
  }
  return fmt::format("{:.2f} TiB", value);
}

}  // namespace moetrim::cli
