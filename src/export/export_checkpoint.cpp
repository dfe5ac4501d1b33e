// Writes the folder: shards, index, config, side files, record and card; staged, resumable, renamed when whole.

#include <algorithm>
#include <set>
#include <vector>

#include <fmt/format.h>

#include "export/digest.h"
#include "export/disk_need.h"
#include "export/journal.h"
#include "export/read_ahead.h"
#include "export/shards.h"
#include "export/side_files.h"
#include "export/staging.h"
#include "moetrim/error.h"
#include "moetrim/export.h"

namespace moetrim {

namespace {

using namespace export_detail;
namespace fs = std::filesystem;

/// Small enough to be hashed and written while it lies in the processor's cache. Writes of 8 MiB took up to six times the
/// processor time (Linux 6.18, ext4).
constexpr std::size_t kWriteBytes = std::size_t{512} << 10;

/// One run of export_checkpoint.
class Export {
 public:
  Export(const Checkpoint& source, const ExportRequest& request, const fs::path& target, const ExportOptions& options,
         const ExportProgressFn& progress)
      : source_(source),
        request_(request),
        options_(options),
        progress_(progress),
        target_(resolve_target(target, source.folder(), options.overwrite)),
        shards_(assign_shards(request.tensors, options.shard_bytes)),
        side_files_(find_side_files(source.folder())),
        staging_(target_),
        journal_(staging_.folder(), job_digest(shards_, request.source_fingerprint)) {
    state_.total_bytes = tensor_bytes(shards_);
    state_.total_shards = shards_.size();
  }

  ExportResult run() {
    try {
      return write();
    } catch (const OutOfResources& problem) {
      if (!leave_resumable()) throw;
      throw OutOfResources(fmt::format("{}; finished shards are kept in {} and the same command goes on after them",
                                       problem.what(), staging_.folder().string()));
    } catch (...) {
      leave_resumable();
      throw;
    }
  }

 private:
  ExportResult write() {
    find_finished();
    check_disk();
    report();
    for (const Shard& shard : shards_) {
      if (!finished_.contains(shard.file)) write_shard(shard);
    }
    write_other_files();
    // From here to the rename a kill costs the work, but nothing looks finished: the folder's name is not the target's.
    fs::remove(staging_.folder() / kJournalName);
    staging_.publish(options_.overwrite);
    return result();
  }

  void find_finished() {
    std::set<std::string> keep;
    for (const Shard& shard : shards_) {
      if (!journal_.has(shard)) {
        journal_.forget(shard.file);
        continue;
      }
      keep.insert(shard.file);
      state_.done_bytes += shard.tensor_bytes;
      ++state_.done_shards;
    }
    finished_ = keep;
    if (!keep.empty()) keep.insert(kJournalName);
    staging_.clear(keep);
  }

  void check_disk() const {
    std::vector<Shard> left;
    for (const Shard& shard : shards_) {
      if (!finished_.contains(shard.file)) left.push_back(shard);
    }
    const std::uint64_t need = disk_need(left, side_files_, request_);
    const std::uint64_t free = free_disk_bytes(target_);
    if (need <= free) return;
    throw OutOfResources(fmt::format("{}: writing the checkpoint needs {} bytes of disk, {} are free; free some, or write "
                                     "elsewhere", target_.string(), need, free));
  }

  void write_shard(const Shard& shard) {
    SafetensorsWriter writer(staging_.folder() / shard.file, shard.specs());
    ReadAhead reader(source_, shard.pieces());
    Digest digest;
    for (auto block = reader.next(); !block.empty(); block = reader.next()) {
      for (std::size_t at = 0; at < block.size(); at += kWriteBytes) {
        const auto part = block.subspan(at, std::min(kWriteBytes, block.size() - at));
        digest.add(part);
        writer.write(part);
      }
      state_.done_bytes += block.size();
      report();
    }
    writer.finish();
    journal_.add(shard, digest.hex());
    ++state_.done_shards;
    report();
  }

  /// config.json comes last: without it no reader takes the folder for a checkpoint.
  void write_other_files() const {
    const fs::path& folder = staging_.folder();
    for (const SideFile& file : side_files_) copy_side_file(source_.folder(), folder, file);
    write_file_atomically(folder / "README.md", request_.card);
    write_json("moetrim.json", request_.record);
    if (shards_.size() > 1) write_json(kIndexName, index_json(shards_));
    write_json("config.json", request_.config);
  }

  void write_json(const char* name, const nlohmann::ordered_json& json) const {
    write_file_atomically(staging_.folder() / name, json_text(json));
  }

  void report() const {
    if (progress_) progress_(state_);
  }

  /// True when there is something that a later run can go on from.
  bool leave_resumable() {
    if (journal_.empty()) staging_.discard();
    return !journal_.empty();
  }

  ExportResult result() const {
    ExportResult out;
    out.folder = target_;
    out.tensor_bytes = state_.total_bytes;
    out.shards = shards_.size();
    out.reused_shards = finished_.size();
    for (const SideFile& file : side_files_) out.copied_files.push_back(file.name);
    return out;
  }

  const Checkpoint& source_;
  const ExportRequest& request_;
  const ExportOptions& options_;
  const ExportProgressFn& progress_;
  fs::path target_;
  std::vector<Shard> shards_;
  std::vector<SideFile> side_files_;
  Staging staging_;
  Journal journal_;
  std::set<std::string> finished_;  ///< shards of an earlier run
  ExportProgress state_;
};

}  // namespace

ExportResult export_checkpoint(const Checkpoint& source, const ExportRequest& request, const fs::path& target,
                               const ExportOptions& options, const ExportProgressFn& progress) {
  try {
    return Export(source, request, target, options, progress).run();
  } catch (const fs::filesystem_error& problem) {
    throw Error(problem.what());
  }
}

}  // namespace moetrim
