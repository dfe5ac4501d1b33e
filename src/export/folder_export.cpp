// One checkpoint folder on its way: shards, index, config, side files, record and card; staged, and renamed when whole.

#include "export/folder_export.h"

#include <algorithm>
#include <utility>

#include "export/digest.h"
#include "export/disk_need.h"

namespace moetrim::export_detail {

namespace {

namespace fs = std::filesystem;

/// Small enough to be hashed and written while it lies in the processor's cache. Writes of 8 MiB took up to six times the
/// processor time (Linux 6.18, ext4).
constexpr std::size_t kWriteBytes = std::size_t{512} << 10;

}  // namespace

FolderExport::FolderExport(const Checkpoint& source, const ExportRequest& request, fs::path target, const ExportOptions& options,
                           Meter& meter, Cached cached)
    : source_(source),
      request_(request),
      overwrite_(options.overwrite),
      meter_(meter),
      cached_(cached),
      target_(std::move(target)),
      shards_(assign_shards(request.tensors, options.shard_bytes)),
      side_files_(find_side_files(source.folder())),
      staging_(target_),
      journal_(staging_.folder(), job_digest(shards_, request.source_fingerprint)) {
  meter_.state.total_bytes += tensor_bytes(shards_);
  meter_.state.total_shards += shards_.size();
}

void FolderExport::find_finished() {
  std::set<std::string> keep;
  for (const Shard& shard : shards_) {
    if (!journal_.has(shard)) {
      journal_.forget(shard.file);
      continue;
    }
    keep.insert(shard.file);
    meter_.state.done_bytes += shard.tensor_bytes;
    ++meter_.state.done_shards;
  }
  finished_ = keep;
  if (!keep.empty()) keep.insert(kJournalName);
  staging_.clear(keep);
}

std::uint64_t FolderExport::disk_left() const {
  std::vector<Shard> left;
  for (const Shard& shard : shards_) {
    if (!finished_.contains(shard.file)) left.push_back(shard);
  }
  return disk_need(left, side_files_, request_);
}

void FolderExport::write_shard(const Shard& shard) {
  if (finished_.contains(shard.file)) return;
  SafetensorsWriter writer(staging_.folder() / shard.file, shard.specs());
  ReadAhead blocks(TensorReader(source_, request_, shard, cached_));
  Digest digest;
  for (auto block = blocks.next(); !block.empty(); block = blocks.next()) {
    for (std::size_t at = 0; at < block.size(); at += kWriteBytes) {
      const auto part = block.subspan(at, std::min(kWriteBytes, block.size() - at));
      digest.add(part);
      writer.write(part);
    }
    meter_.state.done_bytes += block.size();
    meter_.report();
  }
  writer.finish();
  journal_.add(shard, digest.hex());
  ++meter_.state.done_shards;
  meter_.report();
}

/// config.json comes last: without it no reader takes the folder for a checkpoint.
void FolderExport::write_other_files() const {
  const fs::path& folder = staging_.folder();
  for (const SideFile& file : side_files_) copy_side_file(source_.folder(), folder, file);
  write_file_atomically(folder / "README.md", request_.card);
  if (!request_.modelling_code.empty()) write_file_atomically(folder / kSlimFile, request_.modelling_code);
  write_json("moetrim.json", request_.record);
  if (shards_.size() > 1) write_json(kIndexName, index_json(shards_));
  write_json("config.json", request_.config);
}

void FolderExport::write_json(const char* name, const nlohmann::ordered_json& json) const {
  write_file_atomically(staging_.folder() / name, json_text(json));
}

void FolderExport::publish() {
  // From here to the rename a kill costs the work, but nothing looks finished: the folder's name is not the target's.
  fs::remove(staging_.folder() / kJournalName);
  staging_.publish(overwrite_);
}

bool FolderExport::leave_resumable() {
  if (journal_.empty()) staging_.discard();
  return !journal_.empty();
}

ExportResult FolderExport::result() const {
  ExportResult out;
  out.folder = target_;
  out.tensor_bytes = tensor_bytes(shards_);
  out.shards = shards_.size();
  out.reused_shards = finished_.size();
  for (const SideFile& file : side_files_) out.copied_files.push_back(file.name);
  return out;
}

}  // namespace moetrim::export_detail
