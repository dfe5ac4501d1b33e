// Where the bytes of a shard come from: read as they are, or computed.
#pragma once

#include <cstddef>
#include <span>

namespace moetrim::export_detail {

class Blocks {
 public:
  virtual ~Blocks() = default;
  /// The next block, empty after the last one; valid until the next call. The blocks, joined, are the shard's tensors.
  virtual std::span<const std::byte> next() = 0;
};

}  // namespace moetrim::export_detail
