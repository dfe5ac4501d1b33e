// Values of a planned tensor, piece by piece, read from the checkpoint as fp32.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "export/slab_values.h"
#include "moetrim/gguf_export.h"

namespace moetrim::gguf_detail {

/// Rows [begin, end) of a slab of a tensor, as they are written.
struct GgufPiece {
  std::uint32_t tensor = 0, slab = 0;
  std::int64_t begin = 0, end = 0;
};

/// Blocks of rows where rows can be read by themselves, else whole slabs; in the order in which they lie in the source.
std::vector<GgufPiece> pieces_of(const GgufExport& request);
/// Memory for the largest of them: what is read, its values and what is written.
std::uint64_t piece_memory(const GgufExport& request, std::span<const GgufPiece> pieces);

/// Keeps its buffers from one piece to the next. For one thread.
class ValueReader {
 public:
  explicit ValueReader(const Model& model) : model_(model), slabs_(*model.checkpoint, model) {}

  /// Values [rows of the piece, cols] as they are written; valid until the next call.
  /// @throws InvalidInput on a scale that cannot be meant.
  std::span<const float> read(const GgufPlannedTensor& tensor, const GgufPiece& piece);
  /// The bytes of a tensor in MXFP4 as they are written.
  void read_blocks(const GgufPlannedTensor& tensor, const GgufPiece& piece, std::vector<std::byte>& out);

 private:
  void read_rows(const GgufPlannedTensor& tensor, const GgufSlab& slab, const GgufPiece& piece);
  void read_slab(const GgufPlannedTensor& tensor, const GgufSlab& slab);
  void reorder_columns(std::span<const std::uint32_t> columns);

  const Model& model_;
  export_detail::SlabReader slabs_;
  std::vector<std::byte> raw_, gathered_;
  std::vector<float> values_, ordered_;
};

}  // namespace moetrim::gguf_detail
