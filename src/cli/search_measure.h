// Measures plans many at a time, and remembers every measurement on disk.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cli/stages.h"
#include "moetrim/export.h"
#include "moetrim/search.h"

namespace moetrim::cli {

/// The plans of one text, in a file: a search that is killed or repeated goes on with what it has measured.
class Measurements {
 public:
  using MakePlan = std::function<Plan()>;

  /// @param file   that remembers; what was measured of another checkpoint, text or way of computing is forgotten
  /// @param label  of the progress line
  /// @param written  how plans that change values are written
  Measurements(const Session& session, const Model& model, const EvaluateFlags& flags, const std::filesystem::path& file,
               const std::string& label, PrepareOptions written);

  /// Plans that share a pass: of up to `most` (0: 16) the number that makes the fewest passes for each.
  void choose_plans_per_pass(int most);
  std::size_t plans_per_pass() const { return plans_per_pass_; }
  EvaluateEstimate estimate(std::size_t plans) const;

  /// Sums over all tasks, in passes of plans_per_pass() plans. Plans that change values are written beside the file first and
  /// measured one by one, against the whole model.
  /// @throws Interrupted: the passes before are remembered
  std::vector<LossSums> losses(std::span<const MakePlan> plans);
  /// Of the whole model, once any plan was measured.
  const LossSums& whole() const { return whole_.value(); }
  Quality quality(const LossSums& sums) const;
  /// Share of right answers, by generating them; once any plan was measured. @param plan  null: of the whole model
  double exact_match(const Plan* plan);

  /// Of this search, whether they were done now or before: passes over the weights, different plans, and generations.
  int passes() const { return passes_; }
  std::size_t plans() const { return seen_.size(); }
  int generations() const { return generations_; }
  /// Passes that were not needed again.
  int remembered_passes() const { return remembered_passes_; }

  const nlohmann::ordered_json& key() const { return key_; }

 private:
  void set_whole(const LossSums& sums);
  void remember();
  void pass(const std::vector<Plan>& plans, const std::vector<std::string>& digests);
  void pass_of_written(const Plan& plan, const std::string& digest);
  template <class Use>
  void with_written(const Plan& plan, Use use);
  EvaluateOptions options() const;

  const Session& session_;
  const Model& model_;
  const EvaluateFlags& flags_;
  std::filesystem::path file_;
  std::string label_;
  PrepareOptions written_;
  std::vector<Task> tasks_, prompts_;
  nlohmann::ordered_json key_;
  std::optional<LossSums> whole_;
  std::map<std::string, LossSums> sums_;       ///< by plan_digest
  std::map<std::string, double> answers_;      ///< by plan_digest; "whole" of the model itself
  std::set<std::string> seen_, asked_;         ///< in this search
  std::size_t plans_per_pass_ = 1;
  int passes_ = 0, remembered_passes_ = 0, generations_ = 0;
};

}  // namespace moetrim::cli
