// Fills blocks with the tensors of a shard while the blocks before are being written.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "export/tensor_reader.h"

namespace moetrim::export_detail {

inline constexpr std::size_t kBlocks = 4;

/// The blocks, joined, are the shard's tensors, joined.
class ReadAhead {
 public:
  explicit ReadAhead(TensorReader reader);
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  /// The next block, empty after the last one; valid until the next call. Rethrows what reading threw.
  std::span<const std::byte> next();

 private:
  struct Block {
    std::vector<std::byte> bytes;
    std::size_t filled = 0;
  };

  void read_all();
  /// Waits for a free block; null when the reader is to stop.
  Block* claim();
  void publish();

  TensorReader tensors_;
  std::vector<Block> ring_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t read_ = 0;     ///< blocks published
  std::size_t taken_ = 0;    ///< blocks handed out
  std::size_t freed_ = 0;    ///< blocks that may be filled again
  bool done_ = false;
  bool stop_ = false;
  std::exception_ptr failure_;
  std::thread reader_;       ///< last: starts when all of the above is there
};

}  // namespace moetrim::export_detail
