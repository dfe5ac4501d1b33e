// Demonstrations cut into groups whose hidden states fit the memory budget.

#include "calibrate/token_groups.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

void append(TokenGroup& group, const Source& source, Count count) {
  const auto& ids = source.demonstration->ids;
  const auto begin = static_cast<std::int64_t>(group.batch.ids.size());
  const auto length = static_cast<std::int64_t>(ids.size());
  const auto counted = counted_range(*source.demonstration, count);
  const std::int64_t prompt = source.demonstration->prompt_tokens;
  group.batch.ids.insert(group.batch.ids.end(), ids.begin(), ids.end());
  group.batch.sequences.push_back({.begin = begin, .length = length, .mask = -1, .task = source.task});
  group.sequences.push_back({.begin = begin,
                             .length = length,
                             .count_begin = begin + counted.first,
                             .count_end = begin + counted.second,
                             .prompt_end = begin + (prompt > 0 ? std::min(prompt, length) : length),
                             .task = source.task,
                             .slice = static_cast<int>(source.index % kSlices),
                             .demonstration = source.index});
}

/// Which experts stay depends on all tokens.
[[noreturn]] void refuse_groups(const std::vector<std::int64_t>& lengths, const MemoryPlan& plan) {
  const std::uint64_t tokens = static_cast<std::uint64_t>(std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}));
  const std::uint64_t needed = plan.fixed_bytes + plan.token_bytes * tokens;
  throw OutOfResources(fmt::format("a sequential calibration holds the hidden states of all {} tokens at once, and the memory budget "
                                   "holds {}; raise --max-memory to {} MiB, or take fewer tokens with --samples or --max-tokens",
                                   tokens, plan.group_tokens, (needed >> 20) + 1));
}

}  // namespace

std::int64_t predicted_tokens(const Demonstration& demonstration, Count count) {
  const auto counted = counted_range(demonstration, count);
  return std::max<std::int64_t>(0, counted.second - std::max<std::int64_t>(counted.first, 1));
}

std::vector<Source> demonstrations_of(const std::vector<Task>& tasks, const DemonstrationShare& share) {
  std::vector<Source> sources;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    std::int64_t index = 0;
    for (const Demonstration& demonstration : tasks[t].demonstrations) {
      if (share.holds(index)) sources.push_back({&demonstration, static_cast<int>(t), index});
      ++index;
    }
  }
  return sources;
}

std::int64_t longest_demonstration(const std::vector<Task>& tasks, const DemonstrationShare& share) {
  std::size_t longest = 0;
  for (const Source& source : demonstrations_of(tasks, share)) longest = std::max(longest, source.demonstration->ids.size());
  return static_cast<std::int64_t>(longest);
}

std::vector<TokenGroup> make_groups(const std::vector<Task>& tasks, const CalibrateOptions& options, const MemoryPlan& plan) {
  const auto sources = demonstrations_of(tasks, options.share);
  std::vector<std::int64_t> lengths;
  for (const Source& source : sources) {
    lengths.push_back(static_cast<std::int64_t>(source.demonstration->ids.size()));
    if (lengths.back() <= plan.group_tokens) continue;
    throw OutOfResources(fmt::format("{}:{}: the memory budget holds {} tokens at a time, this demonstration has {}; raise "
                                     "--max-memory or cut with --max-tokens",
                                     tasks[static_cast<std::size_t>(source.task)].file.string(), source.demonstration->line,
                                     plan.group_tokens, lengths.back()));
  }
  std::vector<TokenGroup> groups;
  for (const SequenceGroup& range : cut_groups(lengths, plan.group_tokens)) {
    TokenGroup& group = groups.emplace_back();
    for (std::size_t i = range.first; i < range.last; ++i) append(group, sources[i], options.count);
  }
  if (options.sequential && groups.size() > 1) refuse_groups(lengths, plan);
  return groups;
}

}  // namespace moetrim
