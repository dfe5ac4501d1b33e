// A file that appears under its name only when it is whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "posix_file.h"

namespace moetrim::checkpoint_detail {

/// Bytes go to a temporary file; commit() flushes them to disk and renames. Destroyed before that, it removes them.
class AtomicFile {
 public:
  /// @param tag  the temporary file is `FILE.TAG.partial`, or `FILE.partial` without one; a left-over is replaced
  /// @throws Error or OutOfResources when the temporary file cannot be made.
  explicit AtomicFile(std::filesystem::path file, const std::string& tag = {});
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::filesystem::path& path() const { return file_; }
  /// Takes the space of so many bytes from the disk, where the file system can: a full disk shows before the work, and writes cost a
  /// quarter less. @throws OutOfResources when the disk is full
  void reserve(std::uint64_t bytes);
  /// @throws OutOfResources when the disk is full; Error otherwise.
  void write(std::span<const std::byte> data);
  /// Bytes at a place of their own, from any thread. @throws as write
  void write_at(std::uint64_t at, std::span<const std::byte> data);
  /// The same with bytes [begin, begin + size) of a file, which the kernel moves by itself where it can.
  /// @throws InvalidInput when that file ends before; else as write
  void copy_at(std::uint64_t at, int from, const std::filesystem::path& from_path, std::uint64_t begin, std::uint64_t size);
  void commit();

 private:
  /// Turns errno into the exception that fits.
  [[noreturn]] void fail(const char* action, std::uint64_t bytes) const { fail(action, written_bytes_, bytes); }
  [[noreturn]] void fail(const char* action, std::uint64_t at, std::uint64_t bytes) const;
  /// Lets the disk begin with these bytes. Only a hint: errors are reported by the flush at the end.
  void start_flushing(std::uint64_t at, std::uint64_t size) const;

  std::filesystem::path file_;
  std::filesystem::path partial_;
  Descriptor descriptor_;
  std::uint64_t written_bytes_ = 0;
  std::uint64_t flushing_bytes_ = 0;  // of them, those that the disk was asked to write
  bool pending_ = false;  ///< the temporary file is there and ours
};

}  // namespace moetrim::checkpoint_detail
