// The reverse sweep of a token group.

#include "calibrate/reverse_sweep.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "calibrate/observe.h"
#include "moetrim/error.h"

namespace moetrim {

std::vector<Prediction> predictions_of(const TokenGroup& group) {
  std::vector<Prediction> out;
  for (const MeasuredSequence& sequence : group.sequences) {
    for (std::int64_t t = std::max(sequence.count_begin, sequence.begin + 1); t < sequence.count_end; ++t) {
      out.push_back({.row = t - 1, .target = group.batch.ids[static_cast<std::size_t>(t)]});
    }
  }
  return out;
}

void ReverseSweep::turn_round(RunState& state, const TokenGroup& group, const at::Tensor& hidden) const {
  Backward backward(model_, options_);
  const auto loss = backward.begin(group.batch, hidden, predictions_of(group));
  state.loss.resize(static_cast<std::size_t>(tasks_), 0.0);
  for (std::size_t task = 0; task < loss.size(); ++task) state.loss[task] += loss[task];
  state.sweep = Sweep::reverse;
  state.layer = backward.next_layer();
  state.hidden = backward.gradient();
  partial_.save_state(state);
}

void ReverseSweep::run(RunState& state, const TokenGroup& group) const {
  Backward backward(model_, options_);
  backward.resume(group.batch, state.layer, state.hidden);
  state.hidden.reset();
  while (!backward.done()) {
    measure(backward, state.group, group);
    state.layer = backward.next_layer();
    if (!backward.done()) {
      state.hidden = backward.gradient();
      partial_.save_state(state);
      state.hidden.reset();
    }
    passed_(state);
  }
}

void ReverseSweep::measure(Backward& backward, int group_number, const TokenGroup& group) const {
  const int layer = backward.next_layer();
  const at::Tensor hidden = boundary(layer, group_number, group);
  ReversedLayer reversed;
  if (!model_.layer[static_cast<std::size_t>(layer)].sparse) return backward.run_layer(hidden, reversed);
  // From the group before, not from this one's file: a kill after writing it must not count the group twice.
  AtomStatistics atoms = group_number > 0 ? partial_.read_atoms(group_number - 1, layer)
                                          : AtomStatistics(layer, tasks_, static_cast<int>(model_.experts),
                                                           static_cast<int>(model_.expert_width));
  reversed.sums = {.tokens = std::move(atoms.tokens),
                   .activation = std::move(atoms.activation),
                   .gradient = std::move(atoms.gradient),
                   .joint = std::move(atoms.joint),
                   .down_squares = {},
                   .gate_up_squares = {}};
  if (group_number > 0) {
    reversed.sums.down_squares = std::move(atoms.down_squares);
    reversed.sums.gate_up_squares = std::move(atoms.gate_up_squares);
  }
  std::optional<RowStatistics> rows;
  if (manifest_.row_rank > 0) {
    rows = rows_before(group_number, layer);
    reversed.rows = {.rank = manifest_.row_rank,
                     .gate = std::move(rows->gate),
                     .up = std::move(rows->up),
                     .down = std::move(rows->down)};
  }
  backward.run_layer(hidden, reversed);
  atoms.tokens = std::move(reversed.sums.tokens);
  atoms.activation = std::move(reversed.sums.activation);
  atoms.gradient = std::move(reversed.sums.gradient);
  atoms.joint = std::move(reversed.sums.joint);
  atoms.down_squares = std::move(reversed.sums.down_squares);
  atoms.gate_up_squares = std::move(reversed.sums.gate_up_squares);
  observe_products(reversed, group.sequences, atoms);
  partial_.write_atoms(group_number, atoms);
  if (!rows) return;
  rows->gate = std::move(reversed.rows.gate);
  rows->up = std::move(reversed.rows.up);
  rows->down = std::move(reversed.rows.down);
  partial_.write_rows(group_number, *rows);
}

/// As with atoms, from the group before.
RowStatistics ReverseSweep::rows_before(int group_number, int layer) const {
  if (group_number > 0) return partial_.read_rows(group_number - 1, layer, manifest_);
  return RowStatistics(layer, tasks_, static_cast<int>(model_.experts), static_cast<int>(model_.expert_width),
                       static_cast<int>(model_.hidden));
}

/// The hidden states before a layer; where they were not kept, the layers from the nearest kept ones on run again.
at::Tensor ReverseSweep::boundary(int layer, int group_number, const TokenGroup& group) const {
  if (auto kept = partial_.load_boundary(group_number, layer)) return *kept;
  int start = layer;
  std::optional<at::Tensor> hidden;
  while (!hidden && --start >= 0) hidden = partial_.load_boundary(group_number, start);
  if (!hidden) {
    throw InvalidInput(fmt::format("{}: the hidden states before layer {} are gone; remove the folder and start again",
                                   partial_.folder().string(), layer));
  }
  Forward forward(model_, options_);
  forward.resume(group.batch, start, *hidden, layer);
  hidden.reset();
  RoutedLayer routed;
  while (!forward.done()) {
    forward.run_layer(routed);
    partial_.save_boundary(group_number, forward.next_layer(), forward.hidden());
  }
  return *partial_.load_boundary(group_number, layer);
}

}  // namespace moetrim
