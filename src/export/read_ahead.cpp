// Reads pieces of a checkpoint, packed into blocks, while the blocks before are being written.

#include "export/read_ahead.h"

#include <algorithm>

namespace moetrim::export_detail {

ReadAhead::ReadAhead(const Checkpoint& source, std::vector<Piece> pieces, Cached cached)
    : source_(source), pieces_(std::move(pieces)), cached_(cached), ring_(kBlocks), reader_([this] { read_all(); }) {}

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

void ReadAhead::read_piece(const Piece& piece, Block*& block) {
  for (std::uint64_t at = piece.begin; at < piece.end;) {
    if (block == nullptr) block = claim();
    if (block == nullptr) return;
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(piece.end - at, kBlockBytes - block->filled));
    source_.read(*piece.source, at, {block->bytes.data() + block->filled, size});
    block->filled += size;
    at += size;
    if (block->filled == kBlockBytes) {
      publish();
      block = nullptr;
    }
  }
}

void ReadAhead::read_all() {
  try {
    Block* block = nullptr;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      read_piece(pieces_[i], block);
      const bool last_of_tensor = i + 1 == pieces_.size() || pieces_[i + 1].source != pieces_[i].source;
      if (last_of_tensor && cached_ == Cached::drop) source_.drop_cache(*pieces_[i].source);
      const std::lock_guard lock(mutex_);
      if (stop_) return;
    }
    if (block != nullptr && block->filled > 0) publish();
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
