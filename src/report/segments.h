// Windows and caches over one layer's trace.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrim/report.h"
#include "report/trace_reader.h"

namespace moetrim {

/// How many windows of m tokens used an expert 0, 1, … m times: [m + 1].
using UseCounts = std::vector<std::int64_t>;

/// Of every expert, added up over the sequences: [E].
/// @param ids          [tokens, K]
/// @param by_sequence  [sequences], all experts together; added to
std::vector<UseCounts> count_windows(std::span<const std::int32_t> ids, int experts, int experts_per_token,
                                     const std::vector<TraceSequence>& sequences, int window,
                                     std::vector<UseCounts>& by_sequence);

/// The threshold with the best F1. 0 where nothing was used.
SegmentRouting best_threshold(const UseCounts& counts);

/// Uses by what caches have the expert: [E], at r those that caches of more than r experts have. Of one sequence; caches are
/// empty at its start.
std::vector<std::int64_t> cache_ranks(std::span<const std::int32_t> ids, int experts, int experts_per_token,
                                      TraceSequence sequence, int window);

}  // namespace moetrim
