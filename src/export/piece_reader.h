// The bytes of a piece, front to back, whatever its cut leaves of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moetrim/rewrite.h"

namespace moetrim::export_detail {

inline constexpr std::size_t kBlockBytes = std::size_t{4} << 20;

/// Bytes [begin, begin + size) of a row.
struct RowRun {
  std::uint64_t begin = 0, size = 0;
};

/// What a cut leaves of a row, in order; neighbours are joined.
std::vector<RowRun> row_runs(const AtomCut& cut);

/// Applies a cut to rows in memory.
void cut_rows(std::span<const std::byte> rows, const AtomCut& cut, std::vector<std::byte>& out);

/// Reads the source in long runs, also where what stays of them is a few bytes here and there.
class PieceReader {
 public:
  explicit PieceReader(const Checkpoint& source) : source_(source) {}

  /// Starts with another piece, which must outlive the reading.
  void open(const Piece& piece);
  /// Fills `out` with what comes next. @return its size, or less when the piece is at its end.
  std::size_t read(std::span<std::byte> out);

 private:
  /// Takes the next run of the row, or the next row. False at the end.
  bool advance();
  void copy(std::uint64_t at, std::span<std::byte> out);

  const Checkpoint& source_;
  const Piece* piece_ = nullptr;
  std::vector<RowRun> runs_;
  std::uint64_t row_ = 0;         ///< where the next row begins, or the end of the piece
  std::size_t next_ = 0;          ///< of runs_
  RowRun run_;                    ///< what is left of the present run, in bytes of the source
  std::uint64_t zeros_ = 0;       ///< left to be added
  std::vector<std::byte> window_; ///< bytes of the source from window_begin_ on
  std::uint64_t window_begin_ = 0;
};

}  // namespace moetrim::export_detail
