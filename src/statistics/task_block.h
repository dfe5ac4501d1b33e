// Sums that are kept task after task, private to the stage.
#pragma once

#include <cstddef>
#include <vector>

namespace moetrim {

/// Adds task `other_task` of `from` to task `task` of `to`; `length` values a task.
inline void add_block(std::vector<double>& to, int task, const std::vector<double>& from, int other_task, std::size_t length) {
  double* out = to.data() + static_cast<std::size_t>(task) * length;
  const double* in = from.data() + static_cast<std::size_t>(other_task) * length;
  for (std::size_t i = 0; i < length; ++i) out[i] += in[i];
}

}  // namespace moetrim
