// Scoring methods: statistics to one number per expert, higher is kept. Pure functions; budgets, protection and
// ties belong to `plan`.
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

struct ScoreOptions {
  Variant variant = Variant::executed;
  std::uint64_t seed = 0;  ///< used by `random` only
};

/// Scores one task in one MoE layer.
/// @return [experts] fp64, finite; an expert that no token reached scores 0 unless the method says otherwise.
using ScoreFn = std::vector<double> (*)(const StatisticsManifest& manifest, const LayerStatistics& layer, int task,
                                        const ScoreOptions& options);

struct ScoringMethod {
  std::string_view name;      ///< spelling in recipes and on the command line
  std::string_view source;    ///< paper and equation
  std::string_view unit;      ///< of one score
  std::string_view official;  ///< what `--variant official` does and where it is refused; empty: the same as executed
  ScoreFn score;
};

/// Every method, in the order of `methods.def`.
std::span<const ScoringMethod* const> scoring_methods();
/// @throws UsageError listing the known names, with a suggestion.
const ScoringMethod& find_scoring_method(std::string_view name);

/// Scores of a run: [layers][experts].
struct Scores {
  std::string method;
  std::string variant;                       ///< "executed" or "official"
  std::vector<int> layers;                   ///< absolute ids of the MoE layers
  std::vector<std::vector<double>> values;   ///< per layer [experts]
  std::vector<std::string> tasks;            ///< names of the tasks that were scored
  std::vector<double> weights;               ///< of those tasks, in the same order; empty: all 1
  nlohmann::ordered_json source = nlohmann::ordered_json::object();  ///< tasks, weights, fingerprints
};

/// Scores every layer. With several tasks each task's scores are normalised per layer to sum 1 (where a method has
/// negative scores: the sum of their magnitudes; all zeros stay zeros), multiplied by the task's weight and added
/// (EASY-EP's mix); with one task they are left as they are, whatever its weight.
/// @param task_weights  (task name, weight): these tasks and no others; empty: all tasks with weight 1.
/// @throws InvalidInput for an unknown task or when `official` needs what was not recorded; UsageError for a weight that
///         is not positive and a task named twice.
Scores score(const Statistics& statistics, const ScoringMethod& method, const ScoreOptions& options,
             const std::vector<std::pair<std::string, double>>& task_weights = {});

/// Scores file: safetensors with `scores` [layers, experts] F64 and `layers` [layers] I64, metadata names the method.
void write_scores(const std::filesystem::path& file, const Scores& scores);
/// `{"method", "variant", "layers": [{"layer": absolute id, "scores": […]}], …}`
nlohmann::ordered_json scores_to_json(const Scores& scores);

}  // namespace moetrim
