// Reads weights ahead of the computation, in a fixed order, within a byte budget.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "moetrim/checkpoint.h"

namespace moetrim {

/// Bytes [begin, begin + size) of a tensor.
struct ByteRange {
  const Tensor* tensor = nullptr;
  std::uint64_t begin = 0;
  std::uint64_t size = 0;
};

/// Ranges that are needed together, such as the three matrices of an expert. Laid out back to back in one buffer.
using WeightGroup = std::vector<ByteRange>;

/// Memory that goes back to its stream when it is dropped, to be used for a later group.
using WeightBuffer = std::shared_ptr<std::byte>;

class WeightStream {
 public:
  /// @param ahead_bytes  how much may lie read and not yet taken; one group is always read ahead.
  WeightStream(const Checkpoint& checkpoint, std::vector<WeightGroup> groups, std::uint64_t ahead_bytes, bool drop_cache);
  ~WeightStream();
  WeightStream(const WeightStream&) = delete;
  WeightStream& operator=(const WeightStream&) = delete;

  /// The next group's bytes. Blocks until they are read; rethrows what reading threw.
  WeightBuffer next();

 private:
  struct FreeList;
  void read_all();
  WeightBuffer read_group(const WeightGroup& group);

  const Checkpoint& checkpoint_;
  std::vector<WeightGroup> groups_;
  std::uint64_t ahead_bytes_;
  bool drop_cache_;
  std::shared_ptr<FreeList> free_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<WeightBuffer, std::uint64_t>> ready_;
  std::uint64_t ready_bytes_ = 0;
  bool stop_ = false;
  std::exception_ptr failure_;
  std::thread reader_;
};

}  // namespace moetrim
