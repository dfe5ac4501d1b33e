// One checkpoint folder on its way: shards, index, config, side files, record and card; staged, and renamed when whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <vector>

#include "export/journal.h"
#include "export/read_ahead.h"
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
  /// Keeps what an interrupted run finished and clears away the rest.
  void find_finished();
  /// Disk that is still to be taken.
  std::uint64_t disk_left() const;
  /// Nothing to do for a shard that is finished.
  void write_shard(const Shard& shard);
  void write_other_files() const;
  /// Gives the folder its name.
  void publish();
  /// True when there is something that a later run can go on from; else the working folder is removed.
  bool leave_resumable();
  ExportResult result() const;

 private:
  void write_json(const char* name, const nlohmann::ordered_json& json) const;

  const Checkpoint& source_;
  const ExportRequest& request_;
  const bool overwrite_;
  Meter& meter_;
  const Cached cached_;
  std::filesystem::path target_;
  std::vector<Shard> shards_;
  std::vector<SideFile> side_files_;
  Staging staging_;
  Journal journal_;
  std::set<std::string> finished_;  ///< shards of an earlier run
};

}  // namespace moetrim::export_detail
