// Recipes: a whole run as a JSON file whose fields are the command line's options.
#pragma once

#include <filesystem>
#include <string>

#include "cli/stages.h"

namespace moetrim::cli {

/// recipes/recipe.schema.json describes the file.
struct Recipe {
  std::filesystem::path checkpoint;
  std::filesystem::path output;      ///< the run folder
  CalibrateFlags calibrate;
  bool sequential = false;           ///< calibrate behind pruned layers, as the plan prunes them
  PlanFlags plan;
  std::string shard_size = "5GB";
  std::string mtp;  ///< of rewrite; as in calibrate where it says nothing
  EvaluateFlags evaluate;
  bool evaluates = false;            ///< the recipe has an "evaluate" part

  /// Paths in the file are relative to the file.
  /// @throws InvalidInput naming file and field; unknown fields with a suggestion.
  static Recipe read(const std::filesystem::path& file);
};

}  // namespace moetrim::cli
