// The folder of a calibration in work: finished layers per token group, and the state to go on from.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "calibrate/run_cut.h"
#include "moetrim/input_statistics.h"
#include "moetrim/row_statistics.h"
#include "moetrim/statistics.h"
#include "moetrim/vectors.h"

namespace moetrim {

enum class Sweep : std::uint8_t { forward, reverse };

/// Where a run stands. In the forward sweep: the hidden states before `layer` of token group `group`. In the reverse sweep:
/// the gradient after `layer`, which runs next.
struct RunState {
  int group = 0;
  Sweep sweep = Sweep::forward;
  int layer = 0;
  at::Tensor hidden = {};                    ///< [T, H] on the CPU; in the reverse sweep the gradient
  std::vector<std::int32_t> previous_ids = {};  ///< [T, K] of the last MoE layer; empty before the first
  int previous_layer = -1;
  std::vector<double> loss = {};             ///< [tasks] of the groups whose forward sweep is done; second order only
};

class PartialRun {
 public:
  /// Opens or makes `OUTPUT.partial`.
  /// @param key  all that must be equal for the work in it to be of use.
  /// @param cut  if the run begins here.
  /// @throws InvalidInput when `output` exists, or the partial folder is of another run.
  PartialRun(std::filesystem::path output, const nlohmann::ordered_json& key, const RunCut& cut);

  const RunCut& cut() const { return cut_; }

  /// The state saved last, or nothing. Damaged state counts as none.
  std::optional<RunState> load_state() const;
  /// Replaces the saved state; the former one stays until the new one is whole. Hidden states that the reverse sweep wants
  /// stay after that.
  void save_state(const RunState& state);
  /// Marks a group as done: the next starts from its embeddings.
  void finish_group(const RunState& state);

  /// The hidden states before a layer, or nothing when they were not kept.
  std::optional<at::Tensor> load_boundary(int group, int layer) const;
  void save_boundary(int group, int layer, const at::Tensor& hidden) const;

  void write_layer(int group, const LayerStatistics& layer) const;
  LayerStatistics read_layer(int group, int layer) const;
  void write_atoms(int group, const AtomStatistics& atoms) const;
  AtomStatistics read_atoms(int group, int layer) const;
  /// Those of the group before are kept until the state goes on beyond the layer.
  void write_vectors(int group, const ExpertVectors& vectors) const;
  ExpertVectors read_vectors(int group, int layer, const StatisticsManifest& manifest) const;
  /// Kept like vectors.
  void write_inputs(int group, const LinearInputs& inputs) const;
  LinearInputs read_inputs(int group, int layer, const StatisticsManifest& manifest) const;
  void write_rows(int group, const RowStatistics& rows) const;
  RowStatistics read_rows(int group, int layer, const StatisticsManifest& manifest) const;

  const std::filesystem::path& folder() const { return folder_; }
  /// The last group's files hold all sums: gives them their final names, and the folder its own.
  void finish(const StatisticsManifest& manifest, int groups);

 private:
  std::filesystem::path group_file(int group, const std::string& name) const;
  std::filesystem::path boundary_file(int group, int layer) const;
  std::filesystem::path gradient_file(int group, int layer) const;
  void write_state(const RunState& state) const;
  void remove_stale(const RunState& state) const;
  void remove_earlier_vectors(int group, int layers) const;

  std::filesystem::path output_;
  std::filesystem::path folder_;
  RunCut cut_;
};

}  // namespace moetrim
