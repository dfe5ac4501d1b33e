// Opening and reading files by position, with every error turned into an exception that names the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace moetrim::checkpoint_detail {

/// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int value = -1) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();

  int get() const { return value_; }
  int release();

 private:
  int value_;
};

/// Opens a regular file (links are followed) for reading. At the limit of open files the soft limit of the process is
/// raised to the hard one, because a checkpoint of thousands of shards keeps them all open.
/// @throws InvalidInput when it is missing, unreadable or not a regular file; OutOfResources at the hard limit.
Descriptor open_for_reading(const std::filesystem::path& file);

/// @throws Error when the system cannot say.
std::uint64_t size_of(const Descriptor& descriptor, const std::filesystem::path& file);

/// Fills `out` from byte `offset` on.
/// @throws InvalidInput when the file ends before; Error on an I/O error.
void read_at(int descriptor, const std::filesystem::path& file, std::uint64_t offset, std::span<std::byte> out);

/// The whole file.
/// @throws InvalidInput also when it is larger than `limit_bytes`.
std::string read_text(const std::filesystem::path& file, std::uint64_t limit_bytes);

}  // namespace moetrim::checkpoint_detail
