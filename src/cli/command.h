// What the sub-commands share: where output goes, common options, and the stop flag of the signal handlers.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "moetrim/checkpoint.h"
#include "moetrim/plan.h"
#include "moetrim/run_options.h"
#include "moetrim/score.h"
#include "moetrim/text.h"

namespace moetrim::cli {

inline constexpr const char* kVersion = MOETRIM_VERSION;

/// Set by SIGINT, SIGTERM and SIGUSR1: work stops at the next point from which it can go on.
extern std::atomic<bool> stop_requested;
/// @throws Interrupted when a signal came.
void stop_if_requested();

/// One run of the program. Results go to stdout, everything else to stderr.
struct Session {
  bool json = false;
  bool quiet = false;
  std::function<void()> run;   ///< set by the sub-command that was chosen
  std::shared_ptr<ReadingTime> reading = std::make_shared<ReadingTime>();  ///< of all passes over weights

  /// Prints the result: with --json the object, else the text.
  void print(const nlohmann::ordered_json& object, const std::string& text) const;
  /// {"bytes", "seconds", "waited_seconds"} of reading weights so far.
  nlohmann::ordered_json reading_json() const;
  /// A note to the user on stderr.
  void note(const std::string& text) const;
  /// The note that statistics are not of all demonstrations, where they are not.
  void note_part(const StatisticsManifest& manifest) const;
};

/// Adds a sub-command with --json, --quiet and an example below its help.
CLI::App* add_command(CLI::App& app, Session& session, const std::string& name, const std::string& description,
                      const std::string& example);

/// --task, --count, --samples, --shuffle, --max-tokens, --split-by-tag
struct TaskFlags {
  std::vector<std::string> files;
  std::string count = "all";
  std::int64_t samples = 0;
  std::optional<std::uint64_t> shuffle;
  std::int64_t max_tokens = 0;
  bool split_by_tag = false;

  void add(CLI::App& command);
  Count count_value() const;
  TaskOptions task_options(std::int64_t vocabulary) const;
};

/// Reads the task files, split by their tags where that is asked for; opens the tokenizer only when the checkpoint has one.
std::vector<Task> read_tasks(const TaskFlags& flags, const std::filesystem::path& checkpoint, const TaskOptions& options);

/// --dtype, --device, --threads, --max-memory
struct RunFlags {
  std::string dtype = "bf16";
  std::string device = "cpu";
  int threads = 0;
  std::string max_memory;

  void add(CLI::App& command);
  /// Fills the common part of a run's options, with a progress line.
  void apply(RunOptions& options, const Session& session, const std::string& label) const;
};

/// --method, --variant, --library-version, --seed and the choice of tasks
struct ScoreFlags {
  std::string method;
  std::string variant = "executed";
  std::string library;
  std::uint64_t seed = 0;
  std::vector<std::string> tasks;   ///< NAME or NAME=WEIGHT

  /// @param required  whether a method must be given.
  void add(CLI::App& command, bool required = true);
  ScoreOptions options() const;
  std::vector<std::pair<std::string, double>> weights() const;
};

/// The plan of --on, or one that keeps every expert and is named after what changes it.
Plan plan_to_change(const std::string& file, const StatisticsManifest& manifest, std::string_view method);

/// A number of at least `least`. @throws UsageError naming the option
int parse_count(std::string_view text, std::string_view option, int least = 1);

/// What --slice says: "2/8" is the second of eight.
struct Slice {
  int number = 1;
  int count = 1;
};
/// @throws UsageError
Slice parse_slice(const std::string& text);

/// "shares 1, 3 of 4 of the demonstrations".
std::string describe_part(const StatisticsManifest::Part& part);

/// "1.50 GiB", "12 KiB".
std::string human_bytes(std::uint64_t bytes);

void add_inspect(CLI::App& app, Session& session);
void add_calibrate(CLI::App& app, Session& session);
void add_score(CLI::App& app, Session& session);
void add_plan(CLI::App& app, Session& session);
void add_check(CLI::App& app, Session& session);
void add_rewrite(CLI::App& app, Session& session);
void add_export(CLI::App& app, Session& session);
void add_evaluate(CLI::App& app, Session& session);
void add_run(CLI::App& app, Session& session);
void add_search(CLI::App& app, Session& session);
void add_merge_statistics(CLI::App& app, Session& session);
void add_verify(CLI::App& app, Session& session);
void add_contrast(CLI::App& app, Session& session);
void add_switch(CLI::App& app, Session& session);
void add_place(CLI::App& app, Session& session);
void add_report(CLI::App& app, Session& session);
void add_precision(CLI::App& app, Session& session);
void add_smooth(CLI::App& app, Session& session);
void add_upcycle(CLI::App& app, Session& session);
void add_replace(CLI::App& app, Session& session);
void add_factorise(CLI::App& app, Session& session);
void add_patterns(CLI::App& app, Session& session);
void add_imatrix(CLI::App& app, Session& session);
void add_plans(CLI::App& app, Session& session);
void add_list(CLI::App& app, Session& session);

}  // namespace moetrim::cli
