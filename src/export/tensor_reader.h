// The bytes of a shard's tensors, one after another: copied, said by the plan, or computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "export/computed_matrix.h"
#include "export/piece_reader.h"
#include "export/shards.h"
#include "moetrim/export.h"

namespace moetrim::export_detail {

/// What becomes of the page cache of what was read.
enum class Cached : std::uint8_t { drop, keep };

class TensorReader {
 public:
  /// The shard is one of the request's tensors. All three must outlive this.
  TensorReader(const Checkpoint& source, const ExportRequest& request, const Shard& shard, Cached cached);

  /// Fills `out` with what comes next. @return its size, or less when the shard is at its end.
  std::size_t read(std::span<std::byte> out);

 private:
  /// Takes what comes after the step that is finished. False at the end of the shard.
  bool advance();
  void begin_step(const OutputTensor& tensor);
  void drop_cache(const OutputTensor& tensor) const;

  const Checkpoint& source_;
  const Shard& shard_;
  const Cached cached_;
  PieceReader pieces_;
  ComputedMatrix matrix_;
  std::size_t tensor_ = 0;            ///< of the shard
  std::size_t step_ = 0;              ///< piece, or matrix, of the tensor that comes next
  bool reading_ = false;              ///< a piece is open
  std::span<const std::byte> ready_;  ///< what is left of a literal or a computed matrix
};

}  // namespace moetrim::export_detail
