// What a run may hold in memory, and the groups of sequences that follow from it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrim/forward.h"
#include "moetrim/run_options.h"

namespace moetrim {

struct MemoryPlan {
  std::uint64_t budget_bytes = 0;    ///< what the process may use
  std::uint64_t fixed_bytes = 0;     ///< weights in work, program
  std::uint64_t token_bytes = 0;     ///< per token of a group
  std::int64_t group_tokens = 0;     ///< tokens that fit
};

/// Sequences [first, last) that go through the layers together.
struct SequenceGroup {
  std::size_t first = 0, last = 0;
  std::int64_t tokens = 0;
};

/// @throws UsageError for an unknown precision.
ForwardOptions forward_options(const Model& model, const RunOptions& options);

/// What a token needs in a forward pass.
std::uint64_t forward_token_bytes(const Model& model, const RunOptions& options);
/// What all threads' tiles need. @param longest  tokens of the longest sequence: a tile holds whole sequences
std::uint64_t tile_bytes(const Model& model, const RunOptions& options, std::int64_t longest);
/// The output head as it is stored and as it is used, and rows of logits.
std::uint64_t head_bytes(const Model& model, const RunOptions& options, std::uint64_t rows);
/// The experts of the layer that has most of them, as stored.
std::uint64_t block_expert_bytes(const Model& model);
/// @param token_bytes    what every token of a group needs
/// @param further_bytes  what the run needs beside the weights in work and the tokens
/// @throws OutOfResources when the weights in work alone do not fit.
MemoryPlan plan_memory(const Model& model, const RunOptions& options, std::uint64_t token_bytes, std::uint64_t further_bytes = 0);

/// Consecutive sequences of at most `group_tokens` tokens together.
/// @param lengths  tokens of each sequence, none above group_tokens.
std::vector<SequenceGroup> cut_groups(std::span<const std::int64_t> lengths, std::int64_t group_tokens);

}  // namespace moetrim
