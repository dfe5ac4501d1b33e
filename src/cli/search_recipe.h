// Recipes of searches: a checkpoint, texts, limits, and what is tried.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/stages.h"
#include "moetrim/runtimes.h"
#include "moetrim/search.h"

namespace moetrim::cli {

/// Sizes that are tried: a list, or from, to and step; neither: all that there are.
struct SizeGrid {
  std::vector<std::string> list;    ///< as on the command line: a number, a ratio or a share
  std::string from, to, step;

  bool empty() const { return list.empty() && from.empty() && to.empty() && step.empty(); }
};

struct SearchFlags {
  SearchLimits limits;
  PlanFlags plan;                       ///< what all candidates have in common; no method, no size
  std::vector<std::string> methods, merges;
  std::vector<std::string> scopes;      ///< of methods over atomic experts
  bool uniform = true, by_layer = false;
  SizeGrid keep, keep_atoms;
  std::vector<int> curve_counts;        ///< experts at which a layer's curve is measured; empty: chosen
  int plans_per_pass = 0;               ///< at most; 0: chosen
  std::optional<ServedModel> served = {};  ///< what plan.runtimes would serve; set where there are any, once the model is known
};

/// recipes/search.schema.json describes the file.
struct SearchRecipe {
  std::filesystem::path checkpoint;
  std::filesystem::path output;         ///< the run folder
  CalibrateFlags calibrate;
  SearchFlags search;
  EvaluateFlags evaluate;               ///< the text on which candidates are judged
  std::optional<EvaluateFlags> test;    ///< another, on which the pick is measured

  /// Paths in the file are relative to the file.
  /// @throws InvalidInput naming file and field; unknown fields with a suggestion.
  static SearchRecipe read(const std::filesystem::path& file);
};

}  // namespace moetrim::cli
