// What an interrupted export has finished.

#include "export/journal.h"

#include <algorithm>
#include <system_error>
#include <vector>

#include <fmt/format.h>

#include "export/digest.h"
#include "moetrim/error.h"

namespace moetrim::export_detail {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

bool same_spec(const TensorSpec& a, const TensorSpec& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape;
}

std::string data_digest(const SafetensorsFile& file) {
  constexpr std::uint64_t kReadBytes = 8U << 20;
  Digest digest;
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min(kReadBytes, file.file_bytes())));
  for (const Tensor& tensor : file.tensors()) {
    for (std::uint64_t at = 0; at < tensor.size;) {
      const std::span part(buffer.data(), static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), tensor.size - at)));
      file.read(tensor, at, part);
      digest.add(part);
      at += part.size();
    }
    file.drop_cache(tensor);
  }
  return digest.hex();
}

/// Empty when the journal is of another job, or damaged: then the work is done again.
std::map<std::string, std::string> read_entries(const fs::path& file, const std::string& job) {
  std::map<std::string, std::string> entries;
  std::error_code ignored;
  if (!fs::is_regular_file(fs::symlink_status(file, ignored))) return entries;
  try {
    const Json json = read_json_file(file);
    if (json.value("job", "") != job) return entries;
    for (const auto& [name, digest] : json.at("shards").items()) entries.emplace(name, digest.get<std::string>());
  } catch (const InvalidInput&) {
    entries.clear();
  } catch (const Json::exception&) {
    entries.clear();
  }
  return entries;
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

Journal::Journal(const fs::path& folder, std::string job)
    : folder_(folder), job_(std::move(job)), entries_(read_entries(folder / kJournalName, job_)) {}

bool Journal::has(const Shard& shard) const {
  const auto entry = entries_.find(shard.file);
  if (entry == entries_.end()) return false;
  try {
    const SafetensorsFile file = SafetensorsFile::open(folder_ / shard.file);
    const auto specs = shard.specs();
    return std::equal(specs.begin(), specs.end(), file.tensors().begin(), file.tensors().end(), same_spec) &&
           data_digest(file) == entry->second;
  } catch (const InvalidInput&) {
    return false;  // damaged or gone: it is written again
  }
}

void Journal::add(const Shard& shard, const std::string& digest) {
  entries_[shard.file] = digest;
  Json json;
  json["job"] = job_;
  json["shards"] = Json::object();
  for (const auto& [name, value] : entries_) json["shards"][name] = value;
  write_file_atomically(folder_ / kJournalName, json.dump(1) + "\n");
}

std::string job_digest(std::span<const Shard> shards, const std::string& source_fingerprint) {
  Digest digest;
  digest.add_text("moetrim export 2");
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
