// The options of the stages that both a sub-command and a recipe can run.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "moetrim/calibrate.h"
#include "moetrim/evaluate.h"
#include "moetrim/merging.h"
#include "moetrim/plan.h"
#include "moetrim/task_algebra.h"

namespace moetrim {
struct MachineRates;
struct RuntimeTarget;
struct ServedModel;
}

namespace moetrim::cli {

struct CalibrateFlags {
  TaskFlags task;
  RunFlags run;
  std::string statistics = "default";   ///< separated by commas
  std::vector<std::string> markers;
  std::optional<int> activation_samples;
  std::int64_t all_experts_tokens = 0;
  int tcess_top_k = 1;
  double tcess_threshold = -1;
  int low_rank = 0;
  std::int64_t trace = 0;
  std::string mtp = "prune";
  std::string max_disk;

  void add(CLI::App& command);
  /// Whether `kind` is among the statistics that are asked for. @throws UsageError when one of those is unknown
  bool wants(std::string_view kind) const;
  /// Options that do not go together. @throws UsageError
  void check() const;
  /// @param checkpoint  whose tokenizer spells the markers
  CalibrateOptions options(const Session& session, const std::filesystem::path& checkpoint) const;

 private:
  std::optional<StatisticsManifest::Vectors> vectors(const std::filesystem::path& checkpoint) const;
};

/// --merge and what belongs to it
struct MergeFlags {
  std::string method, to, counts, features, linkage, group_size, router, align, checkpoint;  ///< empty: not given

  void add(CLI::App& command);
  bool empty() const { return method.empty(); }
  /// @throws UsageError for what cannot be read, and for options without --merge.
  MergeRequest request(const ScoreFlags& score) const;
  /// The same, with the distances of weights where they are compared. @throws InvalidInput when the statistics are of another
  /// checkpoint.
  MergeRequest request(const ScoreFlags& score, const StatisticsManifest& manifest) const;
  void check_unused() const;
};

/// --with, --combine, --protect-task, --drop-task: see moetrim/task_algebra.h and docs/tasks.md.
struct TaskAlgebraFlags {
  std::vector<std::string> with, protect, drop;  ///< FOLDER or TASK, or with :NUMBER behind it
  std::string combine;                           ///< "sum", "union"; empty: not given
  std::filesystem::path base;                    ///< what folders are relative to; empty: the working directory

  void add(CLI::App& command);
  bool empty() const;
  /// What can be said without the folders. @throws UsageError
  void check(const MethodMix& method, const ScoreOptions& options) const;
  /// Folders that have to be read beside the statistics of the tasks `loaded`. @throws InvalidInput for a name that is neither
  /// a task nor a folder, UsageError for one that is both.
  std::vector<std::filesystem::path> beside(std::vector<std::string> loaded) const;
  /// Scores that experts are kept by. @param statistics  of all folders(). @param named  what --task names
  Scores scores(const Statistics& statistics, const MethodMix& method, const ScoreOptions& options,
                const std::vector<std::pair<std::string, double>>& named, int groups) const;
  /// What --protect-task keeps whatever its score; an expert that several tasks name is there more than once.
  std::vector<ProtectedExpert> protected_experts(const Statistics& statistics, const MethodMix& method,
                                                 const ScoreOptions& options, int groups) const;

 private:
  std::filesystem::path folder_of(std::string_view option, const std::string& name) const;
  std::vector<std::string> tasks_of(const StatisticsManifest& manifest, const std::string& name) const;
  std::vector<std::pair<std::string, double>> scored(const StatisticsManifest& manifest,
                                                     const std::vector<std::pair<std::string, double>>& named) const;
};

struct PlanFlags {
  ScoreFlags score;   ///< method empty: nothing has to be chosen, see merge
  TaskAlgebraFlags tasks;
  MergeFlags merge;
  std::string keep, keep_by_layer;  ///< empty: not given
  std::string expert_method, keep_atoms, scope, align, atom_blocks, budget_bytes, budget_flops;  ///< empty: not given
  std::vector<std::string> protect;
  bool regroup = false;
  bool correct_drift = false;
  std::vector<std::string> runtimes;  ///< that must take the plan, see moetrim/runtimes.h

  /// @param merging  with --merge and what belongs to it
  void add(CLI::App& command, bool merging = true);
  /// Whether scores need what calibrate records with --statistics second-order. @throws UsageError for an unknown method
  bool needs_second_order() const;
  /// Options that cannot be read, or that do not go together. @throws UsageError
  void check() const;
  /// Also refuses before anything is measured what the plan of such a router would refuse afterwards. @throws InvalidInput
  void check(const RouterLimits& limits) const;
  /// Refuses what a runtime would refuse of every such plan of that model. @throws InvalidInput
  void check_runtimes(const ServedModel& whole) const;
  /// The statistics of `folder`, with what `tasks` puts beside. @throws as read_beside()
  Statistics read(const std::filesystem::path& folder) const;
  /// What the method says, of all that is kept for. @param statistics  what read() gives
  Scores scores(const Statistics& statistics) const;
  /// With `runtimes`, a ratio or a budget goes to the nearest number that they take, and a plan that they would refuse is refused.
  /// @param statistics  what read() gives. @param vectors  called for plans that merge only.
  Plan make(const Statistics& statistics, const ReadVectors& vectors) const;

 private:
  PlanRequest request() const;
  PlanRequest request(const Statistics& statistics) const;
  Plan make_freely(const Statistics& statistics, const ReadVectors& vectors) const;
  PlanFlags settle(const ServedModel& whole, const std::vector<RuntimeTarget>& targets) const;
  bool over_atoms() const;
  bool widths_differ() const;
  bool keeps() const { return !keep.empty() || !keep_by_layer.empty(); }
  int groups(const StatisticsManifest& manifest) const { return regroup ? 1 : manifest.groups.count; }
  std::optional<MethodMix> choosing_method() const;
  void check_merging() const;
  Plan merge_base(const Statistics& statistics) const;
};

/// --runtime
void add_runtimes(CLI::App& command, std::vector<std::string>& runtimes);
/// A line on rules that statistics alone cannot answer; empty when there are none.
std::string runtimes_note(const PlanFlags& flags, const StatisticsManifest& manifest, const Plan& plan);

struct EvaluateFlags {
  TaskFlags task;
  RunFlags run;
  bool exact_match = false;
  std::int64_t max_new_tokens = 256;
  std::int64_t batch = 32;

  void add(CLI::App& command);
  GenerateOptions generate_options(const Session& session, const Checkpoint& checkpoint) const;
  /// The tasks again, cut where the model would start to answer.
  std::vector<Task> prompts(const std::filesystem::path& checkpoint, std::int64_t vocabulary) const;
};

/// Adds to what --dry-run says what the work and the reading will take. @return the same as a line of text
std::string add_time(double operations, std::uint64_t read_bytes, const MachineRates& rates, nlohmann::ordered_json& json);

/// What `pick` takes of every task, added up.
LossSums total(const std::vector<EvaluateTask>& tasks, const std::function<LossSums(const EvaluateTask&)>& pick);
/// {"tokens", "loss", "perplexity"}, and {"kl", "top1_agreement"} where there is a reference.
nlohmann::ordered_json loss_json(const LossSums& sums, bool with_reference);

}  // namespace moetrim::cli
