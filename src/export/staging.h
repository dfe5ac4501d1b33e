// The hidden folder beside the target in which a checkpoint is built.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "moetrim/export.h"

namespace moetrim::export_detail {

/// The target, absolute and with links resolved.
std::filesystem::path absolute_target(const std::filesystem::path& target);

/// The same, checked. @throws UsageError when it exists and is not an empty folder, or, with
/// `overwrite`, not a folder that moetrim wrote; or when it is the source.
std::filesystem::path resolve_target(const std::filesystem::path& target, const std::filesystem::path& source,
                                     bool overwrite);

/// Bytes that may still be written to the file system of the nearest folder that exists; 2^64-1 when it cannot say.
std::uint64_t free_disk_bytes(const std::filesystem::path& target);

/// Whether a source of that size stays in the page cache while it is copied: beside the machine's memory it is small, so that it
/// pushes nothing out, and dropping it would take as long as a fifth of the copy.
bool stays_cached(std::uint64_t source_bytes);

/// Makes new names in the folder safe on disk.
void flush_folder(const std::filesystem::path& folder);

/// `.TARGET.moetrim-partial`, beside a target as resolve_target gives it.
std::filesystem::path staging_folder(const std::filesystem::path& target);

/// Who else may be at work in the staging folder.
enum class Access : std::uint8_t {
  alone,
  shared,  ///< with other runs that write their share
};

/// The staging folder, locked for as long as this lives.
class Staging {
 public:
  /// Makes the folder, or takes over the one that an interrupted run left.
  /// @throws Error when another run holds it, or when something else has its name.
  Staging(std::filesystem::path target, Access access);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  /// Says whose work lies in the folder. Alone, work of another job is removed.
  /// @throws InvalidInput, where the folder is shared and has work of another job.
  void claim(const std::string& job);
  /// Keeps other runs of the same share out. @throws Error when there is one.
  void lock_share(const ShardShare& share);
  /// Removes what `unwanted` says of a name.
  void clear(const std::function<bool(const std::string& name)>& unwanted) const;
  /// Turns shared access into that of a single run, once the others have left. Calls `wait` meanwhile, which may throw.
  /// @return false when another run gave the folder its final name.
  bool lock_alone(const std::function<void()>& wait);
  /// Flushes the folder and gives it the target's name. @throws Error when the target is taken by now.
  void publish(bool overwrite);
  /// Removes the folder.
  void discard();

 private:
  std::filesystem::path target_;
  std::filesystem::path folder_;
  Access access_;
  int descriptor_ = -1;
  int share_ = -1;  ///< lock file of a share
};

/// The file that says whose work lies in the folder.
bool is_claim(std::string_view name);
/// Files of the working folder itself, which the finished one does not have.
bool is_working_file(std::string_view name);

}  // namespace moetrim::export_detail
