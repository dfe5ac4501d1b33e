// The bytes of the twin's tensors: one computed matrix at a time, or copied.
#pragma once

#include <cstdint>
#include <vector>

#include "export/blocks.h"
#include "export/shards.h"
#include "moetrim/export.h"

namespace moetrim::export_detail {

/// Reads the source with the rest of the run in mind: what was used is dropped from the page cache.
class DequantisedBlocks : public Blocks {
 public:
  /// The shard is one of the twin's tensors. All three must outlive this.
  DequantisedBlocks(const Checkpoint& source, const TwinRequest& twin, const Shard& shard);

  std::span<const std::byte> next() override;

 private:
  /// Both are empty when the tensor is at its end.
  std::span<const std::byte> next_copied(const OutputTensor& tensor);
  std::span<const std::byte> next_matrix(const TwinSource& from);
  void read_parts(const Weight& weight, int expert, StoredMatrix& matrix);

  const Checkpoint& source_;
  const TwinRequest& twin_;
  const Shard& shard_;
  std::size_t tensor_ = 0;  ///< of the shard
  std::size_t step_ = 0;    ///< piece or matrix of the tensor
  std::uint64_t at_ = 0;    ///< bytes of the piece that were handed out
  std::vector<std::byte> raw_;
  std::vector<std::uint16_t> values_, flipped_;
};

}  // namespace moetrim::export_detail
