// One MoE layer's second-order sums in memory.
#include "moetrim/statistics.h"

#include <cstddef>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "statistics/task_block.h"

namespace moetrim {
namespace {

std::size_t size(int value) { return static_cast<std::size_t>(value); }

}  // namespace

AtomStatistics::AtomStatistics(int layer_id, int task_count, int expert_count, int expert_width)
    : layer(layer_id), tasks(task_count), experts(expert_count), width(expert_width) {
  if (layer < 0 || tasks < 1 || experts < 1 || width < 1) {
    throw InvalidInput(fmt::format("second-order statistics of layer {} need at least one task, expert and atomic expert, "
                                   "got {}, {} and {}",
                                   layer, tasks, experts, width));
  }
  const std::size_t atoms = size(experts) * size(width);
  tokens.assign(size(tasks) * size(experts), 0.0);
  activation.assign(size(tasks) * atoms, 0.0);
  gradient = joint = activation;
  taylor.assign(size(tasks) * kSlices * size(experts), 0.0);
  fisher = taylor;
  down_squares.assign(atoms, 0.0);
  gate_up_squares = down_squares;
}

void AtomStatistics::add(const AtomStatistics& other) {
  if (tasks != other.tasks) {
    throw InvalidInput(fmt::format("layer {}: cannot add second-order statistics of {} tasks to those of {}", layer, other.tasks, tasks));
  }
  for (int task = 0; task < tasks; ++task) add_task(task, other, task);
}

void AtomStatistics::add_task(int task, const AtomStatistics& other, int other_task) {
  if (layer != other.layer || experts != other.experts || width != other.width) {
    throw InvalidInput(fmt::format("cannot add second-order statistics of layer {} ({} experts of {}) to layer {} ({} of {})",
                                   other.layer, other.experts, other.width, layer, experts, width));
  }
  if (down_squares != other.down_squares || gate_up_squares != other.gate_up_squares) {
    throw InvalidInput(fmt::format("cannot add second-order statistics of layer {}: the experts' weights differ, so they are "
                                   "of different checkpoints",
                                   layer));
  }
  const std::size_t atoms = size(experts) * size(width);
  const std::size_t per_slice = kSlices * size(experts);
  add_block(tokens, task, other.tokens, other_task, size(experts));
  add_block(activation, task, other.activation, other_task, atoms);
  add_block(gradient, task, other.gradient, other_task, atoms);
  add_block(joint, task, other.joint, other_task, atoms);
  add_block(taylor, task, other.taylor, other_task, per_slice);
  add_block(fisher, task, other.fisher, other_task, per_slice);
}

}  // namespace moetrim
