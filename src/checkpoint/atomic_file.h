// A file that appears under its name only when it is whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "posix_file.h"

namespace moetrim::checkpoint_detail {

/// Bytes go to `FILE.partial`; commit() flushes them to disk and renames. Destroyed before that, it removes them.
class AtomicFile {
 public:
  /// @throws Error or OutOfResources when the temporary file cannot be made.
  explicit AtomicFile(std::filesystem::path file);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::filesystem::path& path() const { return file_; }
  /// @throws OutOfResources when the disk is full; Error otherwise.
  void write(std::span<const std::byte> data);
  void commit();

 private:
  /// Turns errno into the exception that fits.
  [[noreturn]] void fail(const char* action, std::uint64_t bytes) const;

  std::filesystem::path file_;
  std::filesystem::path partial_;
  Descriptor descriptor_;
  std::uint64_t written_bytes_ = 0;
  std::uint64_t flushing_bytes_ = 0;  // of them, those that the disk was asked to write
  bool pending_ = false;  ///< the temporary file is there and ours
};

}  // namespace moetrim::checkpoint_detail
