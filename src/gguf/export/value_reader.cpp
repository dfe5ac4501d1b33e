// Values of a planned tensor, piece by piece, read from the checkpoint as fp32.

#include "gguf/export/value_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "gguf/export/mxfp4_blocks.h"
#include "gguf/export/plan_tensors.h"

namespace moetrim::gguf_detail {

namespace {

constexpr std::int64_t kPieceValues = std::int64_t{1} << 20;
constexpr std::uint64_t kScattered = 4;  ///< times as many rows as are wanted are read at once, to have those that are

bool reads_rows(const Model& model, const GgufPlannedTensor& tensor, const GgufSlab& slab) {
  return tensor.transposed_rows == 0 && !slab.weight->packed() && !matrix_shape(model, *slab.weight).input_first;
}

std::uint64_t row_bytes(const Weight& weight, std::int64_t cols) {
  return static_cast<std::uint64_t>(cols) * static_cast<std::uint64_t>(dtype_bits(weight.values()->dtype)) / 8;
}

/// Where the slab begins in the weight's tensor of values.
std::uint64_t slab_begin(const GgufSlab& slab) {
  if (slab.expert < 0) return 0;
  const Tensor& values = *slab.weight->values();
  return values.size / static_cast<std::uint64_t>(values.shape.front()) * static_cast<std::uint64_t>(slab.expert);
}

/// Of all parts of the slab's weight.
std::uint64_t stored_bytes(const GgufSlab& slab) {
  std::uint64_t bytes = 0;
  for (const Tensor* part : slab.weight->parts) {
    if (part != nullptr) bytes += slab.expert < 0 ? part->size : part->size / static_cast<std::uint64_t>(part->shape.front());
  }
  return bytes;
}

/// Row of the source that a row as written is.
std::int64_t source_row(const GgufSlab& slab, std::int64_t row) {
  return slab.rows ? (*slab.rows)[static_cast<std::size_t>(row)] : row;
}

using Position = std::tuple<std::uint32_t, std::uint64_t>;  // file, byte

Position position(const GgufExport& request, const GgufPiece& piece) {
  const GgufPlannedTensor& tensor = request.tensors[piece.tensor];
  if (tensor.slabs.empty()) return {0, 0};
  const GgufSlab& slab = tensor.slabs[piece.slab];
  const Tensor& values = *slab.weight->values();
  std::uint64_t begin = values.offset + slab_begin(slab);
  if (!slab.weight->packed()) {
    begin += static_cast<std::uint64_t>(source_row(slab, piece.begin)) * row_bytes(*slab.weight, tensor.cols);
  }
  return {values.file, begin};
}

void change_values(GgufChange change, std::span<float> values) {
  if (change == GgufChange::plus_one) {
    for (float& value : values) value += 1.0F;
  } else if (change == GgufChange::negated_exponential) {
    for (float& value : values) value = -std::exp(value);
  }
}

/// [rows, cols] to [cols, rows], in squares that fit the cache.
void transpose(std::span<const float> from, std::span<float> to, std::size_t rows, std::size_t cols) {
  constexpr std::size_t kSide = 32;
  for (std::size_t row = 0; row < rows; row += kSide) {
    for (std::size_t col = 0; col < cols; col += kSide) {
      for (std::size_t r = row; r < std::min(rows, row + kSide); ++r) {
        for (std::size_t c = col; c < std::min(cols, col + kSide); ++c) to[c * rows + r] = from[r * cols + c];
      }
    }
  }
}

}  // namespace

std::vector<GgufPiece> pieces_of(const GgufExport& request) {
  std::vector<GgufPiece> pieces;
  for (std::uint32_t t = 0; t < request.tensors.size(); ++t) {
    const GgufPlannedTensor& tensor = request.tensors[t];
    if (tensor.slabs.empty()) pieces.push_back({t, 0, 0, 1});
    for (std::uint32_t s = 0; s < tensor.slabs.size(); ++s) {
      const bool by_rows = reads_rows(*request.model, tensor, tensor.slabs[s]);
      const std::int64_t step = by_rows ? std::max<std::int64_t>(1, kPieceValues / tensor.cols) : tensor.rows;
      for (std::int64_t row = 0; row < tensor.rows; row += step) {
        pieces.push_back({t, s, row, std::min(tensor.rows, row + step)});
      }
    }
  }
  std::ranges::stable_sort(pieces, {}, [&](const GgufPiece& piece) { return position(request, piece); });
  return pieces;
}

std::uint64_t piece_memory(const GgufExport& request, std::span<const GgufPiece> pieces) {
  // Every buffer stays as large as its largest piece.
  std::uint64_t read = 0, gathered = 0, values = 0, ordered = 0, written = 0;
  for (const GgufPiece& piece : pieces) {
    const GgufPlannedTensor& tensor = request.tensors[piece.tensor];
    if (tensor.slabs.empty()) continue;
    const GgufSlab& slab = tensor.slabs[piece.slab];
    const auto rows = static_cast<std::uint64_t>(piece.end - piece.begin);
    written = std::max(written, tensor.spec.bytes() / tensor.slabs.size() / static_cast<std::uint64_t>(tensor.rows) * rows);
    const bool by_rows = reads_rows(*request.model, tensor, slab);
    const MatrixShape shape = matrix_shape(*request.model, *slab.weight);
    const std::uint64_t count = by_rows ? rows * static_cast<std::uint64_t>(tensor.cols)
                                        : static_cast<std::uint64_t>(shape.outputs * shape.inputs);
    const std::uint64_t stored = by_rows ? rows * row_bytes(*slab.weight, tensor.cols) : stored_bytes(slab);
    read = std::max(read, by_rows && slab.rows ? kScattered * stored : stored);
    if (by_rows) gathered = std::max(gathered, stored);
    if (tensor.spec.type == GgmlType::mxfp4) continue;
    values = std::max(values, count * sizeof(float));
    const bool reorders = tensor.columns || tensor.transposed_rows > 0 || (!by_rows && (slab.rows || shape.input_first));
    if (reorders) ordered = std::max(ordered, count * sizeof(float));
  }
  // A buffer that grows is there twice for a moment.
  return (read + gathered + values + ordered + written) * 5 / 4;
}

std::span<const float> ValueReader::read(const GgufPlannedTensor& tensor, const GgufPiece& piece) {
  if (tensor.slabs.empty()) return tensor.values;
  const GgufSlab& slab = tensor.slabs[piece.slab];
  if (reads_rows(model_, tensor, slab)) {
    read_rows(tensor, slab, piece);
  } else {
    read_slab(tensor, slab);
  }
  if (tensor.columns) reorder_columns(*tensor.columns);
  change_values(tensor.change, values_);
  return values_;
}

void ValueReader::read_blocks(const GgufPlannedTensor& tensor, const GgufPiece& piece, std::vector<std::byte>& out) {
  read_mxfp4_blocks(model_, tensor.slabs[piece.slab], slabs_, out);
}

void ValueReader::read_rows(const GgufPlannedTensor& tensor, const GgufSlab& slab, const GgufPiece& piece) {
  const Tensor& source = *slab.weight->values();
  const std::uint64_t bytes = row_bytes(*slab.weight, tensor.cols);
  const auto count = static_cast<std::size_t>(piece.end - piece.begin);
  gathered_.resize(count * bytes);
  std::int64_t least = source_row(slab, piece.begin), most = least;
  for (std::int64_t row = piece.begin; row < piece.end; ++row) {
    least = std::min(least, source_row(slab, row));
    most = std::max(most, source_row(slab, row));
  }
  // Rows that lie scattered are read with those between them, unless these are many more.
  const std::uint64_t begin = slab_begin(slab);
  const auto span = static_cast<std::uint64_t>(most - least + 1);
  const bool at_once = span <= kScattered * count;
  if (at_once) {
    raw_.resize(span * bytes);
    model_.checkpoint->read(source, begin + static_cast<std::uint64_t>(least) * bytes, raw_);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t row = source_row(slab, piece.begin + static_cast<std::int64_t>(i));
    const std::span to = std::span(gathered_).subspan(i * bytes, bytes);
    if (at_once) {
      std::memcpy(to.data(), raw_.data() + static_cast<std::uint64_t>(row - least) * bytes, bytes);
    } else {
      model_.checkpoint->read(source, begin + static_cast<std::uint64_t>(row) * bytes, to);
    }
  }
  const auto values = static_cast<std::int64_t>(count) * tensor.cols;
  values_.resize(static_cast<std::size_t>(values));
  PackedWeight plain;
  plain[Part::values] = StoredPart{source.name, source.dtype, {1, values}, gathered_.data()};
  dequantise(plain, {.kind = PackingKind::plain, .rows = 1, .cols = values, .bits = dtype_bits(source.dtype)}, values_);
}

void ValueReader::read_slab(const GgufPlannedTensor& tensor, const GgufSlab& slab) {
  slabs_.read(*slab.weight, slab.expert, values_);
  const MatrixShape shape = matrix_shape(model_, *slab.weight);
  const auto outputs = static_cast<std::size_t>(shape.outputs), inputs = static_cast<std::size_t>(shape.inputs);
  if (shape.input_first) {
    ordered_.resize(values_.size());
    transpose(values_, ordered_, inputs, outputs);
    values_.swap(ordered_);
  }
  std::size_t rows = outputs;
  if (slab.rows) {
    rows = slab.rows->size();
    ordered_.resize(rows * inputs);
    for (std::size_t i = 0; i < rows; ++i) {
      std::memcpy(ordered_.data() + i * inputs, values_.data() + (*slab.rows)[i] * inputs, inputs * sizeof(float));
    }
    values_.swap(ordered_);
  }
  if (tensor.transposed_rows == 0) return;
  const std::size_t run = static_cast<std::size_t>(tensor.transposed_rows) * inputs;
  ordered_.resize(rows * inputs);
  for (std::size_t i = 0; i < rows * inputs; i += run) {
    transpose(std::span<const float>(values_).subspan(i, run), std::span(ordered_).subspan(i, run), run / inputs, inputs);
  }
  values_.swap(ordered_);
}

void ValueReader::reorder_columns(std::span<const std::uint32_t> columns) {
  ordered_.resize(values_.size());
  for (std::size_t row = 0; row < values_.size(); row += columns.size()) {
    for (std::size_t i = 0; i < columns.size(); ++i) ordered_[row + i] = values_[row + columns[i]];
  }
  values_.swap(ordered_);
}

}  // namespace moetrim::gguf_detail
