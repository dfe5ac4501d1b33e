// The hidden folder beside the target in which a checkpoint is built.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>

namespace moetrim::export_detail {

/// The target, absolute and with links resolved. @throws UsageError when it exists and is not an empty folder, or, with
/// `overwrite`, not a folder that moetrim wrote; or when it is the source.
std::filesystem::path resolve_target(const std::filesystem::path& target, const std::filesystem::path& source,
                                     bool overwrite);

/// Bytes that may still be written to the file system of the nearest folder that exists; 2^64-1 when it cannot say.
std::uint64_t free_disk_bytes(const std::filesystem::path& target);

/// `.TARGET.moetrim-partial`, beside a target as resolve_target gives it.
std::filesystem::path staging_folder(const std::filesystem::path& target);

/// The staging folder, locked against other runs for as long as this lives.
class Staging {
 public:
  /// Makes the folder, or takes over the one that an interrupted run left.
  /// @throws Error when another run holds it, or when something else has its name.
  explicit Staging(std::filesystem::path target);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  /// Removes everything but these names.
  void clear(const std::set<std::string>& keep = {});
  /// Flushes the folder and gives it the target's name. @throws Error when the target is taken by now.
  void publish(bool overwrite);
  /// Removes the folder.
  void discard();

 private:
  std::filesystem::path target_;
  std::filesystem::path folder_;
  int descriptor_ = -1;
};

}  // namespace moetrim::export_detail
