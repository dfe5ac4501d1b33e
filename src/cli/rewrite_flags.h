// What writes a checkpoint from a plan: the options of `rewrite`, and of whatever else ends in one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace moetrim::cli {

/// A result, for --json and for reading.
struct Outcome {
  nlohmann::ordered_json json;
  std::string text;
};

struct RewriteFlags {
  std::string checkpoint, output, shard_size = "5GB", mtp = "prune", also_dtype, slice, statistics, sparse_rows = "0.1", row_importance,
              low_rank_form = "dense";
  std::vector<std::string> runtimes;  ///< that must take the result
  int low_rank = 0;
  std::optional<int> writers;
  bool overwrite = false, other = false, dry_run = false;

  /// All but the checkpoint, the output and --dry-run.
  void add(CLI::App& command);
  /// Those of them that every plan can do with: files, threads, multi-token-prediction blocks, the dequantised twin.
  void add_common(CLI::App& command);
  /// Writes the checkpoint, or with --dry-run says what that would take.
  Outcome run(const Session& session, const Plan& plan) const;

 private:
  /// The same for a GGUF file.
  Outcome run_gguf(const Session& session, const Plan& plan) const;

  const CLI::App* command_ = nullptr;  ///< which knows what options were given
};

}  // namespace moetrim::cli
