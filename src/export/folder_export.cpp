// One checkpoint folder on its way: shards, index, config, side files, record and card; staged, and renamed when whole.

#include "export/folder_export.h"

#include <algorithm>
#include <utility>

#include "export/disk_need.h"
#include "moetrim/error.h"

namespace moetrim::export_detail {

namespace {

namespace fs = std::filesystem;

/// A writer's left-over is its shard's, whoever wrote.
bool is_partial_of(const std::string& name, const Shard& shard) {
  return name.starts_with(shard.file + ".") && name.ends_with(kPartialEnd);
}

}  // namespace

FolderExport::FolderExport(const Checkpoint& source, const ExportRequest& request, fs::path target, const ExportOptions& options,
                           Meter& meter, Cached cached)
    : source_(source),
      request_(request),
      overwrite_(options.overwrite),
      share_(options.share),
      meter_(meter),
      cached_(cached),
      target_(std::move(target)),
      shards_(assign_shards(request.tensors, options.shard_bytes)),
      side_files_(find_side_files(source.folder())),
      staging_(target_, share_ ? Access::shared : Access::alone),
      journal_(staging_.folder()) {
  staging_.claim(job_digest(shards_, request.source_fingerprint));
  if (share_) staging_.lock_share(*share_);
  for (const Shard& shard : shards_) {
    if (!owns(shard)) continue;
    meter_.state.total_bytes += shard.tensor_bytes;
    ++meter_.state.total_shards;
  }
}

bool FolderExport::owns(const Shard& shard) const {
  return !share_ || share_->holds(static_cast<std::size_t>(&shard - shards_.data()), shards_.size());
}

bool FolderExport::wants(const Shard& shard) const { return owns(shard) && !finished_.contains(shard.file); }

void FolderExport::find_finished() {
  std::set<std::string> keep;
  for (const Shard& shard : shards_) {
    if (!owns(shard) || !journal_.has(shard)) continue;
    finished_.insert(shard.file);
    keep.insert({shard.file, Journal::entry_name(shard)});
    meter_.state.done_bytes += shard.tensor_bytes;
    ++meter_.state.done_shards;
  }
  reused_ = finished_.size();
  if (!share_) return staging_.clear([&](const std::string& name) { return !keep.contains(name) && !is_claim(name); });
  staging_.clear([&](const std::string& name) {
    return std::any_of(shards_.begin(), shards_.end(), [&](const Shard& shard) {
      return wants(shard) && (name == shard.file || name == Journal::entry_name(shard) || is_partial_of(name, shard));
    });
  });
}

std::uint64_t FolderExport::disk_left() const {
  std::vector<Shard> left;
  for (const Shard& shard : shards_) {
    if (wants(shard)) left.push_back(shard);
  }
  return disk_need(left, side_files_, request_);
}

void FolderExport::note_finished(const Shard& shard) {
  journal_.add(shard);
  finished_.insert(shard.file);
}

std::size_t FolderExport::awaited() const {
  return static_cast<std::size_t>(std::count_if(shards_.begin(), shards_.end(), [&](const Shard& shard) {
    return !owns(shard) && !journal_.has(shard);
  }));
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
  staging_.clear([&](const std::string& name) {
    return is_working_file(name) || std::any_of(shards_.begin(), shards_.end(), [&](const Shard& s) { return is_partial_of(name, s); });
  });
  staging_.publish(overwrite_);
}

bool FolderExport::leave_resumable() {
  if (finished_.empty() && !share_) staging_.discard();
  return !finished_.empty();
}

ExportResult FolderExport::result() const {
  ExportResult out;
  out.folder = target_;
  out.tensor_bytes = tensor_bytes(shards_);
  out.shards = shards_.size();
  out.written_shards = finished_.size() - reused_;
  out.reused_shards = reused_;
  for (const SideFile& file : side_files_) out.copied_files.push_back(file.name);
  return out;
}

bool is_complete(const fs::path& folder, const ExportRequest& request, std::span<const Shard> shards) {
  std::error_code ignored;
  const auto is_file = [&](const std::string& name) { return fs::is_regular_file(folder / name, ignored); };
  if (!is_file("moetrim.json") || !is_file("config.json")) return false;
  try {
    return read_json_file(folder / "moetrim.json") == request.record &&
           std::all_of(shards.begin(), shards.end(), [&](const Shard& shard) { return is_file(shard.file); });
  } catch (const InvalidInput&) {
    return false;
  }
}

}  // namespace moetrim::export_detail
