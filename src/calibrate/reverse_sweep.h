// The reverse sweep of a token group: from the loss down to the first MoE layer, layer by layer.
#pragma once

#include <functional>
#include <vector>

#include "calibrate/partial_run.h"
#include "calibrate/token_groups.h"
#include "moetrim/forward.h"

namespace moetrim {

class ReverseSweep {
 public:
  /// @param manifest  that will be written: tasks, and what is measured
  /// @param passed  called after every layer, and may throw to stop.
  ReverseSweep(const Model& model, const ForwardOptions& options, const StatisticsManifest& manifest, PartialRun& partial,
               std::function<void(const RunState&)> passed)
      : model_(model), options_(options), manifest_(manifest), tasks_(static_cast<int>(manifest.tasks.size())),
        partial_(partial), passed_(std::move(passed)) {}

  /// Takes the loss after the last layer: `state` is then at the start of the reverse sweep, and saved.
  /// @param hidden  [T, H] residual stream after all layers
  void turn_round(RunState& state, const TokenGroup& group, const at::Tensor& hidden) const;
  /// Goes on from `state` to the end.
  void run(RunState& state, const TokenGroup& group) const;

 private:
  at::Tensor boundary(int layer, int group_number, const TokenGroup& group) const;
  void measure(Backward& backward, int group_number, const TokenGroup& group) const;
  RowStatistics rows_before(int group_number, int layer) const;

  const Model& model_;
  const ForwardOptions& options_;
  const StatisticsManifest& manifest_;
  int tasks_;
  PartialRun& partial_;
  std::function<void(const RunState&)> passed_;
};

/// The tokens whose cross entropy is the loss: counted ones that have a predecessor.
std::vector<Prediction> predictions_of(const TokenGroup& group);

}  // namespace moetrim
