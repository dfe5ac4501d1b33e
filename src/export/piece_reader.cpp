// The bytes of a piece, front to back, whatever its cut leaves of them.

#include "export/piece_reader.h"

#include <algorithm>
#include <cstring>

namespace moetrim::export_detail {

namespace {

/// From here on a run is read by itself; shorter ones are taken from a window that holds many.
constexpr std::uint64_t kLongRun = std::uint64_t{256} << 10;

void add_run(std::vector<RowRun>& runs, std::uint64_t begin, std::uint64_t size) {
  if (!runs.empty() && runs.back().begin + runs.back().size == begin) runs.back().size += size;
  else runs.push_back({begin, size});
}

}  // namespace

std::vector<RowRun> row_runs(const AtomCut& cut) {
  std::vector<RowRun> runs;
  for (const AtomRange& range : *cut.atoms) {
    const auto first = static_cast<std::uint64_t>(range.begin / cut.step);
    const auto end = static_cast<std::uint64_t>((range.end + cut.step - 1) / cut.step);
    if (cut.kept_bytes == cut.unit_bytes) {
      add_run(runs, cut.first_byte + first * cut.unit_bytes, (end - first) * cut.unit_bytes);
      continue;
    }
    for (std::uint64_t unit = first; unit < end; ++unit) {
      add_run(runs, cut.first_byte + unit * cut.unit_bytes, cut.kept_bytes);
    }
  }
  return runs;
}

void cut_rows(std::span<const std::byte> rows, const AtomCut& cut, std::vector<std::byte>& out) {
  const auto runs = row_runs(cut);
  out.assign(static_cast<std::size_t>(rows.size() / cut.row_bytes * cut.row_bytes_after()), std::byte{0});
  std::byte* to = out.data();
  for (std::uint64_t row = 0; row < rows.size(); row += cut.row_bytes) {
    for (const RowRun& run : runs) {
      std::memcpy(to, rows.data() + row + run.begin, run.size);
      to += run.size;
    }
    to += cut.zero_bytes;
  }
}

void PieceReader::open(const Piece& piece) {
  piece_ = &piece;
  row_ = piece.begin;
  zeros_ = 0;
  run_ = {};
  window_.clear();
  runs_.clear();
  if (piece.cut.atoms) runs_ = row_runs(piece.cut);
  next_ = runs_.size();
}

bool PieceReader::advance() {
  const AtomCut& cut = piece_->cut;
  if (!cut.atoms) {
    run_ = {row_, piece_->end - row_};
    row_ = piece_->end;
    return run_.size > 0;
  }
  if (next_ == runs_.size()) {
    if (row_ == piece_->end || cut.row_bytes_after() == 0) return false;
    next_ = 0;
    row_ += cut.row_bytes;
  }
  if (!runs_.empty()) {
    run_ = runs_[next_++];
    run_.begin += row_ - cut.row_bytes;
  }
  if (next_ == runs_.size()) zeros_ = cut.zero_bytes;
  return true;
}

std::size_t PieceReader::read(std::span<std::byte> out) {
  std::size_t filled = 0;
  while (filled < out.size()) {
    if (run_.size == 0 && zeros_ == 0 && !advance()) break;
    const std::uint64_t left = run_.size > 0 ? run_.size : zeros_;
    const auto part = out.subspan(filled, static_cast<std::size_t>(std::min<std::uint64_t>(left, out.size() - filled)));
    if (run_.size > 0) {
      copy(run_.begin, part);
      run_.begin += part.size();
      run_.size -= part.size();
    } else {
      std::memset(part.data(), 0, part.size());
      zeros_ -= part.size();
    }
    filled += part.size();
  }
  return filled;
}

void PieceReader::copy(std::uint64_t at, std::span<std::byte> out) {
  if (!piece_->cut.atoms || out.size() >= kLongRun) return source_.read(*piece_->source, at, out);
  if (at < window_begin_ || at + out.size() > window_begin_ + window_.size()) {
    window_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kBlockBytes, piece_->end - at)));
    window_begin_ = at;
    source_.read(*piece_->source, at, window_);
  }
  std::memcpy(out.data(), window_.data() + (at - window_begin_), out.size());
}

}  // namespace moetrim::export_detail
