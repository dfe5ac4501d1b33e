// One checkpoint folder on its way: shards, index, config, side files, record and card; staged, and renamed when whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <vector>

#include "export/journal.h"
#include "export/shard_file.h"
#include "export/shards.h"
#include "export/side_files.h"
#include "export/staging.h"
#include "moetrim/export.h"

namespace moetrim::export_detail {

/// Progress of all folders of a run.
struct Meter {
  ExportProgress state;
  const ExportProgressFn& call;

  void report() const {
    if (call) call(state);
  }
};

class FolderExport {
 public:
  /// @param target  as resolve_target gives it
  /// @param cached  what becomes of the page cache of the source
  FolderExport(const Checkpoint& source, const ExportRequest& request, std::filesystem::path target,
               const ExportOptions& options, Meter& meter, Cached cached);

  const std::vector<Shard>& shards() const { return shards_; }
  const Staging& staging() const { return staging_; }
  Cached cached() const { return cached_; }
  std::filesystem::path path_of(const Shard& shard) const { return staging_.folder() / shard.file; }
  /// Keeps what an interrupted run finished and clears away the rest, as far as it is this run's.
  void find_finished();
  /// Disk that is still to be taken.
  std::uint64_t disk_left() const;
  /// True for a shard of this run's share that is not finished.
  bool wants(const Shard& shard) const;
  /// To be called when a shard of this run has its name and is flushed.
  void note_finished(const Shard& shard);
  /// Shards of other runs that are not finished.
  std::size_t awaited() const;
  void write_other_files() const;
  /// Gives the folder its name.
  void publish();
  /// For a run that shares the folder: waits until it can complete it. @return false when another run did.
  bool wait_for_others(const std::function<void()>& wait) { return staging_.lock_alone(wait); }
  /// True when there is something that a later run can go on from; else the working folder is removed.
  bool leave_resumable();
  ExportResult result() const;

 private:
  bool owns(const Shard& shard) const;
  void write_json(const char* name, const nlohmann::ordered_json& json) const;

  const Checkpoint& source_;
  const ExportRequest& request_;
  const bool overwrite_;
  const std::optional<ShardShare> share_;
  Meter& meter_;
  const Cached cached_;
  std::filesystem::path target_;
  std::vector<Shard> shards_;
  std::vector<SideFile> side_files_;
  Staging staging_;
  Journal journal_;
  std::set<std::string> finished_;  ///< of this run's share, all in all
  std::size_t reused_ = 0;          ///< of them, those of an earlier run
};

/// True when a folder holds what the request says, in these shards: another run wrote it.
bool is_complete(const std::filesystem::path& folder, const ExportRequest& request, std::span<const Shard> shards);

}  // namespace moetrim::export_detail
