// How a forward pass runs: what calibration, evaluation and generation have in common.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

namespace moetrim {

/// Demonstration i of a task belongs to slice i mod kSlices; slices give convergence curves and confidence intervals.
inline constexpr int kSlices = 8;

/// One process's share of the demonstrations, where several processes do one run.
///
/// Up to kSlices shares are whole slices, so that no sum of a slice is ever cut and the shares' sums add up to the bytes of one
/// process; more shares deal the demonstrations one by one.
struct DemonstrationShare {
  int number = 1;  ///< from 1 to count
  int count = 1;

  /// Whether the share has the demonstration with that index within its task.
  bool holds(std::int64_t demonstration) const {
    return (count <= kSlices ? demonstration % kSlices : demonstration) % count == number - 1;
  }
};

struct ReadingTime;

struct RunOptions {
  std::string precision = "bf16";   ///< what activations are rounded to: "fp32", "bf16" or "fp64"
  std::string device = "cpu";       ///< "cpu" or "cuda:N"
  int threads = 0;                  ///< 0: all cores that the process may use
  std::uint64_t max_memory = 0;     ///< bytes that the process may use; 0: what the machine or its cgroup has left
  DemonstrationShare share;         ///< which demonstrations are run
  ReadingTime* reading = nullptr;   ///< counts what reading the weights takes, when given
  /// Set by a signal handler: the run ends after the layer in work.
  const std::atomic<bool>* stop = nullptr;
  /// Called as work is done, with the part done and the whole in a unit of the run's own.
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

}  // namespace moetrim
