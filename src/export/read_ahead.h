// Reads pieces of a checkpoint, packed into blocks, while the blocks before are being written.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "export/blocks.h"
#include "moetrim/rewrite.h"

namespace moetrim::export_detail {

inline constexpr std::size_t kBlockBytes = std::size_t{4} << 20;
inline constexpr std::size_t kBlocks = 4;

/// What becomes of the page cache of what was read.
enum class Cached : std::uint8_t { drop, keep };

/// The blocks, joined, are the pieces, joined.
class ReadAhead : public Blocks {
 public:
  ReadAhead(const Checkpoint& source, std::vector<Piece> pieces, Cached cached = Cached::drop);
  ~ReadAhead() override;
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  /// The next block, empty after the last one; valid until the next call. Rethrows what reading threw.
  std::span<const std::byte> next() override;

 private:
  struct Block {
    std::vector<std::byte> bytes;
    std::size_t filled = 0;
  };

  void read_all();
  /// Waits for a free block; null when the reader is to stop.
  Block* claim();
  void publish();
  void read_piece(const Piece& piece, Block*& block);

  const Checkpoint& source_;
  std::vector<Piece> pieces_;
  Cached cached_;
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
