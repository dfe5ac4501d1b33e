// Reads weights ahead of the computation.

#include "forward/weight_stream.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <tuple>

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

/// Adds the time from its making to its end.
class Stopwatch {
 public:
  explicit Stopwatch(std::atomic<std::int64_t>* nanoseconds) : sum_(nanoseconds), begin_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() {
    const auto passed = std::chrono::steady_clock::now() - begin_;
    if (sum_ != nullptr) *sum_ += std::chrono::duration_cast<std::chrono::nanoseconds>(passed).count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  std::atomic<std::int64_t>* sum_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace

/// Buffers that came back. Fresh memory costs a page fault per 4 KiB, and experts are all of about one size.
class WeightStream::BufferPool {
 public:
  explicit BufferPool(const BufferMemory& memory) : memory_(memory.allocate != nullptr ? memory : kHeap) {}
  ~BufferPool() {
    for (auto& [size, memory] : idle_) memory_.release(memory);
  }
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  /// @param reused  whether it comes back here; else its memory is freed
  static WeightBuffer make(const std::shared_ptr<BufferPool>& pool, std::uint64_t bytes, bool reused) {
    const std::size_t wanted = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    auto [size, memory] = reused ? pool->take(wanted) : std::pair{wanted, fresh(kHeap, wanted)};
    if (!reused) return {memory, kHeap.release};
    return {memory, [size = size, pool](std::byte* returned) { pool->put(size, returned); }};
  }

 private:
  static constexpr BufferMemory kHeap{
      .allocate = [](std::size_t size) { return static_cast<std::byte*>(std::aligned_alloc(kAlignment, size)); },
      .release = [](std::byte* memory) { std::free(memory); }};

  static std::byte* fresh(const BufferMemory& from, std::size_t size) {
    auto* memory = from.allocate(size);
    if (memory == nullptr && size > 0) throw OutOfResources(fmt::format("no memory for {} bytes of weights", size));
    return memory;
  }

  std::pair<std::size_t, std::byte*> take(std::size_t wanted) {
    const std::lock_guard lock(mutex_);
    if (const auto fits = idle_.lower_bound(wanted); fits != idle_.end()) {
      const auto found = *fits;
      idle_.erase(fits);
      return found;
    }
    if (!idle_.empty()) {  // too small: a larger one takes its place
      memory_.release(idle_.begin()->second);
      idle_.erase(idle_.begin());
    }
    return {wanted, fresh(memory_, wanted)};
  }

  void put(std::size_t size, std::byte* memory) {
    const std::lock_guard lock(mutex_);
    idle_.emplace(size, memory);
  }

  const BufferMemory memory_;
  std::mutex mutex_;
  std::multimap<std::size_t, std::byte*> idle_;
};

WeightStream::WeightStream(const Checkpoint& checkpoint, std::vector<LayerGroups> layers, const WeightStreamOptions& options)
    : layers_(std::move(layers)),
      options_(options),
      pool_(std::make_shared<BufferPool>(options.memory)),
      reader_(checkpoint, options.cache),
      next_(layers_.empty() ? nullptr : slot_of(layers_.front().always, false)),
      thread_([this] { read_all(); }) {}

WeightStream::~WeightStream() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
  if (options_.time != nullptr) options_.time->bytes += reader_.bytes_read();
}

std::shared_ptr<WeightStream::Slot> WeightStream::slot_of(const WeightGroup& group, bool counted) const {
  return std::make_shared<Slot>(Slot{.group = &group, .bytes = group_bytes(group), .counted = counted});
}

WeightBuffer WeightStream::next_layer() {
  std::unique_lock lock(mutex_);
  if (next_ == nullptr) throw Error("more layers were asked for than the pass was planned with");
  let_go();
  const auto slot = std::exchange(next_, nullptr);
  WeightBuffer buffer = take(slot, lock);
  for (const WeightGroup& expert : layers_[layer_].experts) experts_.push_back(slot_of(expert, true));
  if (++layer_ < layers_.size()) next_ = slot_of(layers_[layer_].always, false);
  lock.unlock();
  changed_.notify_all();
  return buffer;
}

/// Experts that were read and not taken: a layer that ended early.
void WeightStream::let_go() {
  for (const auto& expert : experts_) {
    if (expert->state == State::ready || expert->state == State::reading) ahead_bytes_ -= expert->bytes;
    expert->state = State::taken;
    expert->buffer.reset();
  }
  experts_.clear();
}

void WeightStream::want_experts(std::span<const std::int32_t> experts) { want(experts, false); }

void WeightStream::want_again(std::span<const std::int32_t> experts) { want(experts, true); }

void WeightStream::want(std::span<const std::int32_t> experts, bool again) {
  bool news = false;
  {
    const std::lock_guard lock(mutex_);
    for (const std::int32_t expert : experts) {
      Slot& slot = *experts_[static_cast<std::size_t>(expert)];
      if (slot.state != State::unwanted && !(again && slot.state == State::taken)) continue;
      slot.state = State::wanted;
      news = true;
    }
  }
  if (news) changed_.notify_all();
}

WeightBuffer WeightStream::take_expert(int expert) {
  std::unique_lock lock(mutex_);
  const auto slot = experts_[static_cast<std::size_t>(expert)];
  WeightBuffer buffer = take(slot, lock);
  ahead_bytes_ -= slot->bytes;
  lock.unlock();
  changed_.notify_all();
  return buffer;
}

WeightBuffer WeightStream::take(const std::shared_ptr<Slot>& slot, std::unique_lock<std::mutex>& lock) {
  if (slot->state == State::taken) throw Error("an expert's weights were asked for twice");
  if (slot->state != State::ready) {
    const Stopwatch waiting(options_.time != nullptr ? &options_.time->waited_ns : nullptr);
    awaited_ = slot;
    changed_.notify_all();
    changed_.wait(lock, [&] { return slot->state == State::ready || failure_; });
    awaited_.reset();
  }
  if (slot->state != State::ready) std::rethrow_exception(failure_);
  slot->state = State::taken;
  return std::move(slot->buffer);
}

std::shared_ptr<WeightStream::Slot> WeightStream::choose() const {
  const auto unread = [](const std::shared_ptr<Slot>& slot) {
    return slot->state == State::unwanted || slot->state == State::wanted;
  };
  if (awaited_ != nullptr && unread(awaited_)) return awaited_;
  for (const auto& expert : experts_) {
    if (expert->state != State::wanted) continue;
    if (ahead_bytes_ > 0 && ahead_bytes_ + expert->bytes > options_.ahead_bytes) return nullptr;
    return expert;
  }
  return next_ != nullptr && unread(next_) ? next_ : nullptr;
}

void WeightStream::read_all() {
  try {
    std::unique_lock lock(mutex_);
    while (true) {
      std::shared_ptr<Slot> chosen;
      changed_.wait(lock, [&] { return stop_ || !arrivals_.empty() || (chosen = choose()) != nullptr; });
      if (stop_) return;
      const Stopwatch reading(options_.time != nullptr ? &options_.time->reading_ns : nullptr);
      while (reader_.hungry() && (chosen = choose()) != nullptr) request(chosen);
      lock.unlock();
      const auto bytes = reader_.next();
      if (!bytes.empty()) receive(bytes);
      lock.lock();
      while (!arrivals_.empty() && arrivals_.front().left == 0) {
        const Arrival arrived = std::move(arrivals_.front());
        arrivals_.pop_front();
        if (!arrived.last || arrived.slot->state != State::reading) continue;
        arrived.slot->state = State::ready;
        changed_.notify_all();
      }
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
  changed_.notify_all();
}

/// Asks for the ranges in the order of the file.
void WeightStream::request(const std::shared_ptr<Slot>& slot) {
  slot->buffer = BufferPool::make(pool_, slot->bytes, slot->counted);
  slot->state = State::reading;
  if (slot->counted) ahead_bytes_ += slot->bytes;
  std::vector<std::pair<ByteRange, std::byte*>> ranges;
  std::byte* to = slot->buffer.get();
  for (const ByteRange& range : *slot->group) {
    ranges.emplace_back(range, to);
    to += range.size;
  }
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) {
    const auto place = [](const ByteRange& r) { return std::tuple(r.tensor->file, r.tensor->offset + r.begin); };
    return place(a.first) < place(b.first);
  });
  for (const auto& [range, at] : ranges) {
    reader_.add(range);
    arrivals_.push_back({.slot = slot, .buffer = slot->buffer, .to = at, .left = range.size});
  }
  if (ranges.empty()) arrivals_.push_back({.slot = slot, .buffer = slot->buffer});
  arrivals_.back().last = true;
}

void WeightStream::receive(std::span<const std::byte> bytes) {
  const auto next = std::find_if(arrivals_.begin(), arrivals_.end(), [](const Arrival& arrival) { return arrival.left > 0; });
  std::memcpy(next->to, bytes.data(), bytes.size());
  next->to += bytes.size();
  next->left -= bytes.size();
}

}  // namespace moetrim
