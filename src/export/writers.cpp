// The threads that write shards.

#include "export/writers.h"

#include <thread>
#include <utility>

#include "moetrim/error.h"

namespace moetrim::export_detail {

Writers::Open::Open(const ShardOrder& wanted, const Checkpoint& source)
    : order(wanted), file(source, *wanted.shard, wanted.folder->path_of(*wanted.shard), wanted.folder->cached()),
      left(file.job_count()) {}

void Writers::write(std::span<const ShardOrder> orders, int count, const std::atomic<bool>* stop) {
  orders_ = orders;
  stop_ = stop;
  std::vector<std::jthread> others;
  for (int i = 1; i < count; ++i) others.emplace_back([this] { work(); });
  work();
  others.clear();  // joins them
  current_.reset();
  if (failure_) std::rethrow_exception(failure_);
  if (!orders_.empty()) throw Interrupted("stopped by a signal; repeat the command to go on");
}

void Writers::work() {
  try {
    Workbench bench(source_, model_, alignments_);
    while (auto part = take()) {
      part->shard->file.write(part->job, bench, [this](std::uint64_t bytes) { report(bytes); });
      count_done(std::move(*part));
    }
  } catch (...) {
    fail();
  }
}

void Writers::fail() {
  const std::lock_guard lock(mutex_);
  if (!failure_) failure_ = std::current_exception();
}

std::optional<Writers::Part> Writers::take() {
  const std::lock_guard lock(mutex_);
  if (failure_) return std::nullopt;
  if (!current_ || current_->next == current_->file.job_count()) {
    current_.reset();
    if (orders_.empty() || (stop_ != nullptr && *stop_)) return std::nullopt;
    current_ = std::make_shared<Open>(orders_.front(), source_);
    orders_ = orders_.subspan(1);
  }
  return Part{current_, current_->next++};
}

void Writers::count_done(Part part) {
  {
    const std::lock_guard lock(mutex_);
    if (--part.shard->left > 0) return;
  }
  part.shard->file.finish();
  const std::lock_guard lock(mutex_);
  part.shard->order.folder->note_finished(*part.shard->order.shard);
  ++meter_.state.done_shards;
  meter_.report();
}

void Writers::report(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  meter_.state.done_bytes += bytes;
  meter_.report();
}

}  // namespace moetrim::export_detail
