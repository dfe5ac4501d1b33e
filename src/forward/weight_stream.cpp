// Reads weights ahead of the computation.

#include "forward/weight_stream.h"

#include <cstdlib>
#include <map>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

constexpr std::size_t kAlignment = 4096;

std::uint64_t group_bytes(const WeightGroup& group) {
  std::uint64_t bytes = 0;
  for (const auto& range : group) bytes += range.size;
  return bytes;
}

}  // namespace

/// Buffers that came back, by size. Fresh memory costs a page fault per 4 KiB, and experts are all of one size.
struct WeightStream::FreeList {
  ~FreeList() {
    for (auto& [size, buffer] : buffers) std::free(buffer);
  }
  std::mutex mutex;
  std::multimap<std::size_t, std::byte*> buffers;
};

WeightStream::WeightStream(const Checkpoint& checkpoint, std::vector<WeightGroup> groups, std::uint64_t ahead_bytes,
                           bool drop_cache)
    : checkpoint_(checkpoint),
      groups_(std::move(groups)),
      ahead_bytes_(ahead_bytes),
      drop_cache_(drop_cache),
      free_(std::make_shared<FreeList>()),
      reader_([this] { read_all(); }) {}

WeightStream::~WeightStream() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  reader_.join();
}

WeightBuffer WeightStream::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ready_.empty() || failure_; });
  if (ready_.empty()) std::rethrow_exception(failure_);
  auto [buffer, bytes] = std::move(ready_.front());
  ready_.pop_front();
  ready_bytes_ -= bytes;
  lock.unlock();
  changed_.notify_all();
  return buffer;
}

void WeightStream::read_all() {
  try {
    for (const auto& group : groups_) {
      const std::uint64_t bytes = group_bytes(group);
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || ready_.empty() || ready_bytes_ + bytes <= ahead_bytes_; });
        if (stop_) return;
      }
      WeightBuffer buffer = read_group(group);
      {
        const std::lock_guard lock(mutex_);
        ready_.emplace_back(std::move(buffer), bytes);
        ready_bytes_ += bytes;
      }
      changed_.notify_all();
    }
    throw Error("more weights were asked for than the pass was planned with");
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
  changed_.notify_all();
}

WeightBuffer WeightStream::read_group(const WeightGroup& group) {
  const std::size_t size = (group_bytes(group) + kAlignment - 1) / kAlignment * kAlignment;
  std::byte* memory = nullptr;
  {
    const std::lock_guard lock(free_->mutex);
    if (const auto found = free_->buffers.find(size); found != free_->buffers.end()) {
      memory = found->second;
      free_->buffers.erase(found);
    }
  }
  if (memory == nullptr) memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, size));
  if (memory == nullptr) throw OutOfResources(fmt::format("no memory for {} bytes of weights", size));
  WeightBuffer buffer(memory, [size, list = free_](std::byte* returned) {
    const std::lock_guard lock(list->mutex);
    list->buffers.emplace(size, returned);
  });
  std::size_t at = 0;
  for (const auto& range : group) {
    checkpoint_.read(*range.tensor, range.begin, {memory + at, static_cast<std::size_t>(range.size)});
    if (drop_cache_) checkpoint_.drop_cache(*range.tensor);
    at += range.size;
  }
  return buffer;
}

}  // namespace moetrim
