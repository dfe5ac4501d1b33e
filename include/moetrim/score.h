// Scoring methods: statistics to one number per expert or per atomic expert, higher is kept. Pure functions; budgets,
// protection and ties belong to `plan`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/statistics.h"

namespace moetrim {

/// Whether a method follows the routing that was executed, or its published code where the two differ.
enum class Variant { executed, official };

/// "executed" or "official".
std::string_view variant_name(Variant variant);
/// @throws UsageError
Variant variant_from_name(std::string_view name);

/// What one score belongs to: an expert, or an atomic expert (column of down_proj with its rows of gate_proj and up_proj).
enum class Grain { expert, atom };

/// "expert" or "atom".
std::string_view grain_name(Grain grain);

struct ScoreOptions {
  Variant variant = Variant::executed;
  std::uint64_t seed = 0;    ///< used by the random controls only
  /// Version of transformers that the published code runs with: "4.56", which is also meant when it is empty, or "4.51". For
  /// Variant::official of methods that depend on it (ScoringMethod::by_library).
  std::string library = {};
};

/// Scores one task in one MoE layer.
/// @return [experts] fp64, finite; an expert that no token reached scores 0 unless the method says otherwise.
using ScoreFn = std::vector<double> (*)(const StatisticsManifest& manifest, const LayerStatistics& layer, int task,
                                        const ScoreOptions& options);
/// The same from second-order statistics.
/// @return [experts] or [experts, width], as the method's grain says.
using SecondOrderScoreFn = std::vector<double> (*)(const StatisticsManifest& manifest, const AtomStatistics& atoms, int task,
                                                   const ScoreOptions& options);

struct ScoringMethod {
  std::string_view name;      ///< spelling in recipes and on the command line
  std::string_view source;    ///< paper and equation
  std::string_view unit;      ///< of one score
  std::string_view official;  ///< what `--variant official` does and where it is refused; empty: the same as executed
  ScoreFn score = nullptr;                    ///< exactly one of the two is set
  SecondOrderScoreFn second_order = nullptr;  ///< set: calibration must have recorded second-order statistics
  Grain grain = Grain::expert;
  std::string_view expert_method = {};  ///< of atoms: the method that chooses whole experts in the same sense, if any
  bool by_library = false;              ///< `official` depends on ScoreOptions::library, and is for one task and method alone
};

/// Every method, in the order of `methods.def`, then of `second_order.def`.
std::span<const ScoringMethod* const> scoring_methods();
/// @throws UsageError listing the known names, with a suggestion.
const ScoringMethod& find_scoring_method(std::string_view name);

/// One scoring method, or several whose scores are normalised, weighted and added: no published score wins everywhere.
class MethodMix {
 public:
  struct Part {
    const ScoringMethod* method = nullptr;
    double weight = 1;   ///< above zero
  };

  /// That method alone.
  MethodMix(const ScoringMethod& method);  // NOLINT(google-explicit-constructor): wherever a mix may stand, a method may
  /// "easy-ep", "easy-ep+reap" or "easy-ep:0.7+reap:0.3"; without a number the weight is 1. At most 16 methods.
  /// @throws UsageError naming the part: an unknown method, one that is there twice, a weight that is no finite number above
  ///         zero or is of a method alone, and methods over experts together with methods over atomic experts.
  static MethodMix parse(std::string_view text);

  /// In the order of scoring_methods(): equal mixes are equal however they are written.
  const std::vector<Part>& parts() const { return parts_; }
  /// The one spelling of an equal mix, which parse() reads.
  std::string name() const;
  Grain grain() const { return parts_.front().method->grain; }
  /// The first part that needs second-order statistics; null: none does.
  const ScoringMethod* second_order() const;
  /// Of atomic experts: what chooses whole experts in the same sense, with the same weights; empty where a part has no such
  /// method.
  std::string expert_method() const;

 private:
  explicit MethodMix(std::vector<Part> parts);

  std::vector<Part> parts_;
};

/// Scores of a run.
struct Scores {
  std::string method;                        ///< MethodMix::name()
  std::string variant;                       ///< "executed" or "official"
  std::vector<int> layers;                   ///< absolute ids of the MoE layers
  Grain grain = Grain::expert;
  int width = 0;                             ///< atomic experts of an expert; 0: the scores are of experts
  std::vector<std::vector<double>> values;   ///< per layer [experts] or [experts, width]
  std::vector<std::string> tasks;            ///< names of the tasks that were scored
  std::vector<double> weights;               ///< of those tasks, in the same order; empty: all 1
  nlohmann::ordered_json source = nlohmann::ordered_json::object();  ///< tasks, weights, fingerprints
};

/// Scores every layer. With several tasks each task's scores are normalised to sum 1 (where a method has negative scores:
/// the sum of their magnitudes; all zeros stay zeros), multiplied by the task's weight and added: EASY-EP's mix. Scores of
/// experts are normalised per layer, those of atomic experts over all layers, which one ranking compares. One task is left
/// as it is, whatever its weight. Several methods are added up in the same way within each task, before tasks are mixed.
/// @param task_weights  (task name, weight): these tasks and no others; empty: all tasks with weight 1.
/// @throws InvalidInput for an unknown task, when `official` needs what was not recorded, or when second-order statistics
///         are needed and not there; UsageError for a weight that is not positive, a task named twice, a library that the
///         method or variant does not know, and several tasks or methods where `official` is for one.
Scores score(const Statistics& statistics, const MethodMix& method, const ScoreOptions& options,
             const std::vector<std::pair<std::string, double>>& task_weights = {});

/// Scores file: safetensors with `layers` [layers] I64 and `scores` [layers, experts] F64, or for atomic experts
/// `scores.LAYER` [experts, width] F64 for every absolute layer id; metadata names the method.
void write_scores(const std::filesystem::path& file, const Scores& scores);
/// `{"method", "variant", "layers": [{"layer": absolute id, "scores": […]}], …}`; of atomic experts with `"grain": "atom"` and
/// per layer one list per expert.
nlohmann::ordered_json scores_to_json(const Scores& scores);

}  // namespace moetrim
