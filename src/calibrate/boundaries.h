// Hidden states between layers, which the reverse sweep needs: how many of them the disk can hold.
#pragma once

#include <cstdint>
#include <filesystem>

#include "moetrim/calibrate.h"

namespace moetrim {

/// Which boundaries the forward sweep keeps: before the first MoE layer, and before every `step`-th layer from there on.
/// The reverse sweep computes the others again, a segment at a time.
struct BoundaryPlan {
  int first = 0;                       ///< the first MoE layer: below it nothing is measured
  int step = 0;                        ///< 0: none are kept
  std::int64_t group_tokens = 0;       ///< tokens whose boundaries fit
  std::uint64_t token_bytes = 0;       ///< on disk, of every token of a group, at most at a time

  bool keeps(int layer) const { return step > 0 && layer >= first && (layer - first) % step == 0; }
};

/// The plan that reads the weights least: all boundaries of all tokens if they fit, else fewer boundaries, else fewer tokens
/// at a time.
/// @param group_tokens  tokens of the largest group that fits the memory.
/// @param longest       tokens of the longest demonstration.
/// @throws OutOfResources when the boundaries of the longest demonstration do not fit.
BoundaryPlan plan_boundaries(const Model& model, const CalibrateOptions& options, const std::filesystem::path& output,
                             std::int64_t group_tokens, std::int64_t longest);

}  // namespace moetrim
