// Fills blocks with the tensors of a shard while the blocks before are being written.

#include "export/read_ahead.h"

#include <utility>

namespace moetrim::export_detail {

ReadAhead::ReadAhead(TensorReader reader) : tensors_(std::move(reader)), ring_(kBlocks), reader_([this] { read_all(); }) {}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  reader_.join();
}

std::span<const std::byte> ReadAhead::next() {
  std::unique_lock lock(mutex_);
  freed_ = taken_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return read_ > taken_ || done_; });
  if (read_ > taken_) {
    const Block& block = ring_[taken_++ % kBlocks];
    return {block.bytes.data(), block.filled};
  }
  if (failure_) std::rethrow_exception(failure_);
  return {};
}

ReadAhead::Block* ReadAhead::claim() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stop_ || read_ - freed_ < kBlocks; });
  if (stop_) return nullptr;
  Block& block = ring_[read_ % kBlocks];
  lock.unlock();
  block.bytes.resize(kBlockBytes);  // once per block; a small checkpoint needs only the first
  block.filled = 0;
  return &block;
}

void ReadAhead::publish() {
  {
    const std::lock_guard lock(mutex_);
    ++read_;
  }
  changed_.notify_all();
}

void ReadAhead::read_all() {
  try {
    while (Block* block = claim()) {
      block->filled = tensors_.read(block->bytes);
      if (block->filled > 0) publish();
      if (block->filled < kBlockBytes) break;
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
  }
  changed_.notify_all();
}

}  // namespace moetrim::export_detail
