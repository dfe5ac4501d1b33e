// What an interrupted export has finished.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "export/shards.h"

namespace moetrim::export_detail {

/// Names of the journal's files in the staging folder begin with this.
inline constexpr std::string_view kJournalStart = ".moetrim-done-";

/// One small file per finished shard in the staging folder, so that several runs can note theirs without knowing of each other.
///
/// It is made after the shard's bytes were flushed to disk and has their number and the time of their last change. That tells
/// whether anybody touched the shard since, without the reading of hundreds of gigabytes that a digest would take, at every
/// start and by every one of several runs.
class Journal {
 public:
  explicit Journal(std::filesystem::path folder) : folder_(std::move(folder)) {}

  /// True when the shard was finished and is as it was then.
  bool has(const Shard& shard) const;
  /// To be called when the shard has its name and is flushed.
  void add(const Shard& shard) const;

  static std::string entry_name(const Shard& shard);

 private:
  std::filesystem::path folder_;
};

/// Hash over everything that decides the bytes of the shards.
std::string job_digest(std::span<const Shard> shards, const std::string& source_fingerprint);

}  // namespace moetrim::export_detail
