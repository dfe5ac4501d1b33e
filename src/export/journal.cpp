// What an interrupted export has finished.

#include "export/journal.h"

#include <algorithm>
#include <system_error>

#include <fmt/format.h>

#include "checkpoint/digest.h"
#include "moetrim/error.h"

namespace moetrim::export_detail {

using checkpoint_detail::Digest;

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

bool same_spec(const TensorSpec& a, const TensorSpec& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape;
}

/// What is noted of a finished shard. @throws fs::filesystem_error when it is gone
Json stamp_of(const fs::path& file) {
  return {{"bytes", fs::file_size(file)}, {"changed", fs::last_write_time(file).time_since_epoch().count()}};
}

bool has_stamp(const fs::path& file, const fs::path& entry) {
  std::error_code ignored;
  if (!fs::is_regular_file(fs::symlink_status(entry, ignored)) || !fs::is_regular_file(fs::symlink_status(file, ignored))) return false;
  return read_json_file(entry) == stamp_of(file);
}

void add_atoms(Digest& digest, const SharedAtoms& atoms) {
  if (!atoms) return digest.add_text("all");
  digest.add_text(std::to_string(atoms->size()));
  digest.add(std::as_bytes(std::span(*atoms)));
}

void add_piece(Digest& digest, const Piece& piece) {
  const AtomCut& cut = piece.cut;
  digest.add_text(fmt::format("{} {} {}", piece.source->name, piece.begin, piece.end));
  if (!cut.atoms) return;
  digest.add_text(fmt::format("{} {} {} {} {} {}", cut.step, cut.row_bytes, cut.first_byte, cut.unit_bytes, cut.kept_bytes,
                              cut.zero_bytes));
  add_atoms(digest, cut.atoms);
}

void add_computation(Digest& digest, const Computation& computation) {
  digest.add_text(fmt::format("computed {} {}", static_cast<int>(computation.result), computation.zeros));
  for (const SharedAtoms& atoms : computation.atoms) add_atoms(digest, atoms);
}

}  // namespace

std::string Journal::entry_name(const Shard& shard) { return std::string(kJournalStart) + shard.file; }

bool Journal::has(const Shard& shard) const {
  const fs::path file = folder_ / shard.file;
  try {
    if (!has_stamp(file, folder_ / entry_name(shard))) return false;
    const SafetensorsFile opened = SafetensorsFile::open(file);
    const auto specs = shard.specs();
    return std::equal(specs.begin(), specs.end(), opened.tensors().begin(), opened.tensors().end(), same_spec);
  } catch (const InvalidInput&) {
    return false;  // damaged: it is written again
  } catch (const fs::filesystem_error&) {
    return false;  // gone meanwhile
  }
}

void Journal::add(const Shard& shard) const {
  write_file_atomically(folder_ / entry_name(shard), stamp_of(folder_ / shard.file).dump() + "\n");
}

std::string job_digest(std::span<const Shard> shards, const std::string& source_fingerprint) {
  Digest digest;
  digest.add_text("moetrim export 3");
  digest.add_text(source_fingerprint);
  for (const Shard& shard : shards) {
    digest.add_text(shard.file);
    for (const OutputTensor* tensor : shard.tensors) {
      digest.add_text(tensor->spec.name);
      digest.add_text(dtype_name(tensor->spec.dtype));
      for (const auto length : tensor->spec.shape) digest.add_text(std::to_string(length));
      for (const Piece& piece : tensor->pieces) add_piece(digest, piece);
      digest.add_text(tensor->literal);
      if (tensor->computation) add_computation(digest, *tensor->computation);
    }
  }
  return digest.hex();
}

}  // namespace moetrim::export_detail
