// Reads weights ahead of the computation, within a byte budget: of each layer what is always needed, and those experts that
// some token chose.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "moetrim/checkpoint.h"

namespace moetrim {

/// Ranges that are needed together, such as the three matrices of an expert. Laid out back to back in one buffer.
using WeightGroup = std::vector<ByteRange>;

/// The groups of one layer.
struct LayerGroups {
  WeightGroup always;                 ///< all but the experts
  std::vector<WeightGroup> experts;   ///< [E], empty for a dense layer
};

/// Memory that goes back to its stream when it is dropped, to be used for a later group.
using WeightBuffer = std::shared_ptr<std::byte>;

/// Where the memory of the experts' buffers comes from, when not from the heap: memory that a device reads on its own.
struct BufferMemory {
  std::byte* (*allocate)(std::size_t size) = nullptr;   ///< null when there is none left
  void (*release)(std::byte* memory) = nullptr;
};

/// How the stream reads.
struct WeightStreamOptions {
  std::uint64_t ahead_bytes = 0;   ///< of experts: how much may lie read and not yet taken; one is always read ahead
  PageCache cache = PageCache::use;
  ReadingTime* time = nullptr;     ///< counted up, when given
  BufferMemory memory = {};
};

/// Layers come in the order given; within a layer the experts in any order, in which the caller wants them.
///
/// While a layer is in work the next one's `always` group is read, after the experts that were wanted. An expert is read when it is
/// wanted, or at the latest when it is taken: one that no token chose is never read.
class WeightStream {
 public:
  WeightStream(const Checkpoint& checkpoint, std::vector<LayerGroups> layers, const WeightStreamOptions& options);
  ~WeightStream();
  WeightStream(const WeightStream&) = delete;
  WeightStream& operator=(const WeightStream&) = delete;

  /// Goes on to the next layer and gives what it always needs. Experts of the layer before that were not taken are let go.
  /// Blocks until the bytes are read; rethrows what reading threw.
  WeightBuffer next_layer();
  /// These experts of the layer will be taken. Any thread, any number of times.
  void want_experts(std::span<const std::int32_t> experts);
  /// The same, and those that were taken may be taken once more: they are read again.
  void want_again(std::span<const std::int32_t> experts);
  /// An expert of the layer, each once but for want_again(). Blocks and throws like next_layer().
  WeightBuffer take_expert(int expert);

 private:
  enum class State : std::uint8_t { unwanted, wanted, reading, ready, taken };
  /// A group on its way.
  struct Slot {
    const WeightGroup* group = nullptr;
    std::uint64_t bytes = 0;
    bool counted = false;    ///< against the budget
    State state = State::unwanted;
    WeightBuffer buffer = {};
  };
  /// A range of a group that the reader was asked for, and where its bytes go.
  struct Arrival {
    std::shared_ptr<Slot> slot;
    WeightBuffer buffer;     ///< here too: the slot may be let go meanwhile
    std::byte* to = nullptr;
    std::uint64_t left = 0;
    bool last = false;       ///< of its group
  };
  class BufferPool;

  void want(std::span<const std::int32_t> experts, bool again);
  void read_all();
  /// What to read next; null when nothing is wanted that has room.
  std::shared_ptr<Slot> choose() const;
  void request(const std::shared_ptr<Slot>& slot);
  void receive(std::span<const std::byte> bytes);
  std::shared_ptr<Slot> slot_of(const WeightGroup& group, bool counted) const;
  WeightBuffer take(const std::shared_ptr<Slot>& slot, std::unique_lock<std::mutex>& lock);
  void let_go();

  const std::vector<LayerGroups> layers_;
  const WeightStreamOptions options_;
  std::shared_ptr<BufferPool> pool_;
  BlockReader reader_;                            // of the reading thread, like arrivals_
  std::deque<Arrival> arrivals_;

  std::mutex mutex_;                              // for what follows
  std::condition_variable changed_;
  std::size_t layer_ = 0;                         // the next one
  std::shared_ptr<Slot> next_;                    // its `always` group
  std::vector<std::shared_ptr<Slot>> experts_;    // of the layer in work
  std::shared_ptr<Slot> awaited_;                 // what the computation waits for
  std::uint64_t ahead_bytes_ = 0;                 // counted slots that are read or being read, and not yet taken
  bool stop_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace moetrim
