// What an interrupted export has finished.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "export/shards.h"

namespace moetrim::export_detail {

inline constexpr const char* kJournalName = ".moetrim-journal";

/// Digests of finished shards, in a file of the staging folder that is replaced as a whole.
///
/// It names the job it belongs to. A journal of another job (another source, plan, order or shard size) is not believed.
class Journal {
 public:
  /// Reads the journal that is there, if it belongs to the job.
  Journal(const std::filesystem::path& folder, std::string job);

  /// True when the shard's file is there and still has the bytes that were written. Reads the file.
  bool has(const Shard& shard) const;
  void add(const Shard& shard, const std::string& digest);
  void forget(const std::string& file) { entries_.erase(file); }
  bool empty() const { return entries_.empty(); }

 private:
  std::filesystem::path folder_;
  std::string job_;
  std::map<std::string, std::string> entries_;  ///< file name to digest
};

/// Hash over everything that decides the bytes of the shards.
std::string job_digest(std::span<const Shard> shards, const std::string& source_fingerprint);

}  // namespace moetrim::export_detail
