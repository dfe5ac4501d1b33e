// The one place where scores of atomic experts become widths and ranges, private to the stage.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// One kept expert.
struct RankedExpert {
  std::span<const double> scores;  ///< of its atomic experts
  bool whole = false;              ///< they come before those of every expert that is not whole
};

/// Atomic experts in steps that go or stay together, best first within every pool of neighbouring experts.
///
/// An expert's blocks are ordered by the sum of their scores; a step is as many of them as make up the step size, so that an
/// expert always keeps its best blocks. A last block or step that is shorter comes last, whatever its score: an expert with
/// it is whole. Memory: 16 bytes a step.
class AtomRanking {
 public:
  /// @param experts    equally many scores each; those of a pool follow each other.
  /// @param pool_size  experts of a pool; divides their number.
  /// @param block      neighbours that go together
  /// @param step       by which a width changes: a multiple of `block`.
  AtomRanking(std::vector<RankedExpert> experts, std::size_t pool_size, int block, int step);

  std::int64_t pools() const { return static_cast<std::int64_t>(experts_.size() / pool_size_); }
  /// Atomic experts of a pool.
  std::int64_t pool_atoms() const;
  /// The least that every pool must be allowed to keep: whole experts, and one step at all.
  std::int64_t least() const;
  /// The width of every expert when each pool keeps its best steps, up to the first that would exceed `target` atoms.
  std::vector<int> widths(std::int64_t target) const;
  /// Which atomic experts those are.
  /// @param width  one that widths() gave.
  AtomRanges ranges(std::size_t expert, int width) const;

 private:
  struct Step {
    double score;
    std::int64_t place;  ///< expert x steps_ + the step's number in the expert: the order of ties
  };
  int step_size(std::int64_t place) const;
  std::vector<int> ordered_blocks(std::span<const double> sums) const;
  std::vector<double> block_sums(std::span<const double> scores) const;
  void add_steps(std::size_t expert);

  std::vector<RankedExpert> experts_;
  std::size_t pool_size_;
  int width_, block_, step_;
  int steps_;  ///< of an expert
  std::vector<Step> ranked_;  ///< pool by pool
};

}  // namespace moetrim
