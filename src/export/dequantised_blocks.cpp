// The bytes of the twin's tensors: one computed matrix at a time, or copied.

#include "export/dequantised_blocks.h"

#include <algorithm>

#include "export/read_ahead.h"
#include "export/twin_tensors.h"
#include "moetrim/quantised.h"

namespace moetrim::export_detail {

namespace {

struct Range {
  std::uint64_t begin = 0, size = 0;
};

/// One expert's share of a fused part, or all of it where one value serves all experts.
Range range_of(const Tensor& tensor, const Weight& weight, int expert) {
  const bool one_for_all = tensor.shape.empty() || tensor.shape == std::vector<std::int64_t>{1};
  if (!weight.fused() || one_for_all) return {0, tensor.size};
  const std::uint64_t size = tensor.size / static_cast<std::uint64_t>(tensor.shape[0]);
  return {size * static_cast<std::uint64_t>(expert), size};
}

/// [rows, cols] to [cols, rows], in squares that fit the cache.
void transpose(const std::vector<std::uint16_t>& from, std::vector<std::uint16_t>& to, std::size_t rows, std::size_t cols) {
  constexpr std::size_t kSide = 32;
  to.resize(from.size());
  for (std::size_t row = 0; row < rows; row += kSide) {
    for (std::size_t col = 0; col < cols; col += kSide) {
      for (std::size_t r = row; r < std::min(rows, row + kSide); ++r) {
        for (std::size_t c = col; c < std::min(cols, col + kSide); ++c) to[c * rows + r] = from[r * cols + c];
      }
    }
  }
}

}  // namespace

DequantisedBlocks::DequantisedBlocks(const Checkpoint& source, const TwinRequest& twin, const Shard& shard)
    : source_(source), twin_(twin), shard_(shard) {}

std::span<const std::byte> DequantisedBlocks::next() {
  for (; tensor_ < shard_.tensors.size(); ++tensor_, step_ = 0) {
    const OutputTensor& tensor = *shard_.tensors[tensor_];
    const TwinSource& from = twin_.sources[static_cast<std::size_t>(&tensor - twin_.tensors.data())];
    const auto block = from.weight == nullptr ? next_copied(tensor) : next_matrix(from);
    if (!block.empty()) return block;
  }
  return {};
}

std::span<const std::byte> DequantisedBlocks::next_copied(const OutputTensor& tensor) {
  if (step_ == tensor.pieces.size()) {
    if (step_ > 0) source_.drop_cache(*tensor.pieces.front().source);
    return {};
  }
  const Piece& piece = tensor.pieces[step_];
  raw_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kBlockBytes, piece.end - piece.begin - at_)));
  source_.read(*piece.source, piece.begin + at_, raw_);
  at_ += raw_.size();
  if (piece.begin + at_ == piece.end) {
    ++step_;
    at_ = 0;
  }
  return raw_;
}

void DequantisedBlocks::read_parts(const Weight& weight, int expert, StoredMatrix& matrix) {
  std::uint64_t bytes = 0;
  const auto each = [&](const auto& act) {
    for (std::size_t part = 0; part < kPartCount; ++part) {
      const Tensor* tensor = weight.parts[part];
      if (tensor != nullptr && static_cast<Part>(part) != Part::input_scale) {
        act(static_cast<Part>(part), *tensor, range_of(*tensor, weight, expert));
      }
    }
  };
  each([&](Part, const Tensor&, const Range& range) { bytes += range.size; });
  raw_.resize(static_cast<std::size_t>(bytes));
  bytes = 0;
  each([&](Part part, const Tensor& tensor, const Range& range) {
    const std::span room = std::span(raw_).subspan(static_cast<std::size_t>(bytes), static_cast<std::size_t>(range.size));
    source_.read(tensor, range.begin, room);
    matrix.parts[part]->bytes = room.data();
    bytes += range.size;
  });
}

std::span<const std::byte> DequantisedBlocks::next_matrix(const TwinSource& from) {
  const Weight& weight = *from.weight;
  if (step_ == (weight.fused() ? from.experts.size() : 1)) {
    for (const Tensor* part : weight.parts) {
      if (part != nullptr) source_.drop_cache(*part);
    }
    return {};
  }
  StoredMatrix matrix = stored_matrix(*twin_.model, weight);
  read_parts(weight, weight.fused() ? from.experts[step_] : -1, matrix);
  ++step_;
  const auto rows = static_cast<std::size_t>(matrix.packing.rows);
  const auto cols = static_cast<std::size_t>(matrix.packing.cols);
  values_.resize(rows * cols);
  dequantise_bf16(matrix.parts, matrix.packing, values_);
  if (!is_flipped(weight, matrix)) return std::as_bytes(std::span(values_));
  transpose(values_, flipped_, rows, cols);
  return std::as_bytes(std::span(flipped_));
}

}  // namespace moetrim::export_detail
