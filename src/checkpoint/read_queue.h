// Reads that are under way at the same time: by io_uring where the kernel offers it, else by a few threads.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "moetrim/checkpoint.h"

namespace moetrim::checkpoint_detail {

/// A fixed number of slots, each with at most one read under way. To be used by one thread.
class ReadQueue {
 public:
  /// Waits for what is under way: the memory belongs to the caller.
  virtual ~ReadQueue() = default;

  /// Starts a read in a free slot. `out` must stay until finish().
  virtual void start(std::size_t slot, int descriptor, std::uint64_t offset, std::span<std::byte> out) = 0;
  /// Waits for a slot's read and frees the slot.
  /// @return the bytes read, perhaps fewer than asked for, or minus errno.
  virtual ssize_t finish(std::size_t slot) = 0;
};

/// The environment variable MOETRIM_READER chooses: "uring" or "pread". Unset: around the page cache io_uring where it works;
/// through it pread, since the kernel's own workers, which io_uring would take, need three times the CPU time there.
/// @throws UsageError for another value; Error when io_uring is insisted on and not to be had.
std::unique_ptr<ReadQueue> make_read_queue(std::size_t slots, PageCache cache);

std::unique_ptr<ReadQueue> make_pread_queue(std::size_t slots);
/// Null where io_uring is not to be had: not compiled in, an old kernel, or forbidden as in many containers.
std::unique_ptr<ReadQueue> make_uring_queue(std::size_t slots);

}  // namespace moetrim::checkpoint_detail
