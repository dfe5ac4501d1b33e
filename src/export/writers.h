// The threads that write shards.
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "export/folder_export.h"

namespace moetrim::export_detail {

/// A shard of a folder that is to be written.
struct ShardOrder {
  FolderExport* folder = nullptr;
  const Shard* shard = nullptr;
};

/// Writes shards, in the order given. A thread takes the next job of the shard in work, or the first one of the next shard;
/// so all threads work on one large shard, and none waits while another flushes its shard to disk.
class Writers {
 public:
  Writers(const Checkpoint& source, const Model& model, Alignments& alignments, Meter& meter)
      : source_(source), model_(model), alignments_(alignments), meter_(meter) {}

  /// @param count  threads, the calling one included
  /// @param stop   once it is set no other shard is begun
  /// @throws what a thread threw; Interrupted when shards are left because of `stop`
  void write(std::span<const ShardOrder> orders, int count, const std::atomic<bool>* stop);

 private:
  /// A shard in work.
  struct Open {
    Open(const ShardOrder& wanted, const Checkpoint& source);

    ShardOrder order;
    ShardFile file;
    std::size_t next = 0;  ///< job that is taken next
    std::size_t left;      ///< jobs that are not done
  };
  struct Part {
    std::shared_ptr<Open> shard;
    std::size_t job = 0;
  };

  void work();
  /// The next job, or none when there are no more or the work is to stop.
  std::optional<Part> take();
  void count_done(Part part);
  void report(std::uint64_t bytes);
  void fail();

  const Checkpoint& source_;
  const Model& model_;
  Alignments& alignments_;
  Meter& meter_;
  const std::atomic<bool>* stop_ = nullptr;
  std::mutex mutex_;                     ///< over all below, and the meter
  std::span<const ShardOrder> orders_;   ///< not begun
  std::shared_ptr<Open> current_;
  std::exception_ptr failure_;
};

}  // namespace moetrim::export_detail
