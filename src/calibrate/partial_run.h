// The folder of a calibration in work: finished layers per token group, and the state to go on from.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moetrim/statistics.h"

namespace moetrim {

/// Where a run stands: the hidden states before `layer` of token group `group`.
struct RunState {
  int group = 0;
  int layer = 0;
  at::Tensor hidden = {};                    ///< [T, H] on the CPU
  std::vector<std::int32_t> previous_ids = {};  ///< [T, K] of the last MoE layer; empty before the first
  int previous_layer = -1;
};

class PartialRun {
 public:
  /// Opens or makes `OUTPUT.partial`.
  /// @param key           all that must be equal for the work in it to be of use.
  /// @param group_tokens  tokens of a group if the run begins here; a run that goes on keeps its own.
  /// @throws InvalidInput when `output` exists, or the partial folder is of another run.
  PartialRun(std::filesystem::path output, const nlohmann::ordered_json& key, std::int64_t group_tokens);

  std::int64_t group_tokens() const { return group_tokens_; }

  /// The state saved last, or nothing. Damaged state counts as none.
  std::optional<RunState> load_state() const;
  /// Replaces the saved state; the former one stays until the new one is whole.
  void save_state(const RunState& state);
  /// Marks a group as done: the next starts from its embeddings.
  void finish_group(int group);

  void write_layer(int group, const LayerStatistics& layer) const;
  LayerStatistics read_layer(int group, int layer) const;

  const std::filesystem::path& folder() const { return folder_; }
  /// The last group's files hold all sums: gives them their final names, and the folder its own.
  void finish(const StatisticsManifest& manifest, int groups);

 private:
  std::filesystem::path layer_file(int group, int layer) const;
  std::filesystem::path output_;
  std::filesystem::path folder_;
  std::int64_t group_tokens_ = 0;
};

}  // namespace moetrim
