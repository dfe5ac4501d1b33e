// The options of the stages that both a sub-command and a recipe can run.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "moetrim/calibrate.h"
#include "moetrim/evaluate.h"
#include "moetrim/plan.h"

namespace moetrim {
struct MachineRates;
}

namespace moetrim::cli {

struct CalibrateFlags {
  TaskFlags task;
  RunFlags run;
  std::string statistics = "default";
  int tcess_top_k = 1;
  double tcess_threshold = -1;
  std::int64_t trace = 0;
  std::string mtp = "prune";
  std::string max_disk;

  void add(CLI::App& command);
  CalibrateOptions options(const Session& session) const;
};

struct PlanFlags {
  ScoreFlags score;
  std::string keep, expert_method, keep_atoms, scope, align, atom_blocks, budget_bytes, budget_flops;  ///< empty: not given
  std::vector<std::string> protect;
  bool regroup = false;
  bool correct_drift = false;

  void add(CLI::App& command);
  /// Whether scores need what calibrate records with --statistics second-order. @throws UsageError for an unknown method
  bool needs_second_order() const;
  /// Options that cannot be read, or that do not go together. @throws UsageError
  void check() const;
  /// Also refuses before anything is measured what the plan of such a router would refuse afterwards. @throws InvalidInput
  void check(const RouterLimits& limits) const;
  Plan make(const Statistics& statistics) const;

 private:
  PlanRequest request() const;
  const ScoringMethod* choosing_method() const;
};

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

/// Adds the tasks' sums up.
LossSums total(const std::vector<LossSums>& parts);
/// {"tokens", "loss", "perplexity"}, and {"kl", "top1_agreement"} where there is a reference.
nlohmann::ordered_json loss_json(const LossSums& sums, bool with_reference);

}  // namespace moetrim::cli
