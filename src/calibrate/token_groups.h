// Demonstrations cut into groups whose hidden states fit the memory budget.
#pragma once

#include <cstdint>
#include <vector>

#include "forward/memory_plan.h"
#include "moetrim/calibrate.h"
#include "moetrim/forward.h"

namespace moetrim {

/// One demonstration inside a group, and what of it is measured.
struct MeasuredSequence {
  std::int64_t begin = 0, length = 0;              ///< tokens of the group
  std::int64_t count_begin = 0, count_end = 0;     ///< measured tokens, absolute in the group
  std::int64_t prompt_end = 0;                     ///< behind the prompt's tokens, absolute; of all tokens where there is none
  int task = 0, slice = 0;
  std::int64_t demonstration = 0;                  ///< index within its task
};

struct TokenGroup {
  TokenBatch batch;
  std::vector<MeasuredSequence> sequences;
};

/// Counted tokens that have a predecessor in their demonstration.
std::int64_t predicted_tokens(const Demonstration& demonstration, Count count);
/// A demonstration and where it comes from.
struct Source {
  const Demonstration* demonstration;
  int task;
  std::int64_t index;   ///< within its task
};
/// Those of a share, task by task.
std::vector<Source> demonstrations_of(const std::vector<Task>& tasks, const DemonstrationShare& share);
/// Tokens of the longest demonstration of a share.
std::int64_t longest_demonstration(const std::vector<Task>& tasks, const DemonstrationShare& share);

/// @throws OutOfResources naming the demonstration that does not fit alone.
std::vector<TokenGroup> make_groups(const std::vector<Task>& tasks, const CalibrateOptions& options, const MemoryPlan& plan);

}  // namespace moetrim
