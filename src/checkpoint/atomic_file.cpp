// A file that appears under its name only when it is whole: see atomic_file.h.
#include "atomic_file.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"

namespace moetrim::checkpoint_detail {
namespace {

std::filesystem::path folder_of(const std::filesystem::path& file) {
  return file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
}

std::string free_space(const std::filesystem::path& folder) {
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0) return "";
  return fmt::format(" ({} bytes are free there)", std::uint64_t{status.f_bavail} * status.f_frsize);
}

constexpr std::uint64_t kFlushBytes = 32ULL << 20;
/// Writes in any order: from this size on the disk begins with each at once.
constexpr std::uint64_t kFlushAtBytes = 1ULL << 20;
/// Of one call. Writes of 8 MiB took up to six times the processor time (Linux 6.18, ext4).
constexpr std::size_t kWriteBytes = std::size_t{512} << 10;

bool means_full(int code) { return code == ENOSPC || code == EDQUOT || code == EFBIG; }

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path file, const std::string& tag) : file_(std::move(file)), partial_(file_) {
  partial_ += tag.empty() ? ".partial" : "." + tag + ".partial";
  // A left-over is removed rather than truncated: it may be a link to something else.
  ::unlink(partial_.c_str());
  descriptor_ = Descriptor(::open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (descriptor_.get() < 0) fail("creating it", 0);
  pending_ = true;
}

AtomicFile::~AtomicFile() {
  if (pending_) ::unlink(partial_.c_str());
}

void AtomicFile::fail(const char* action, std::uint64_t at, std::uint64_t bytes) const {
  const int code = errno;
  const std::string what = fmt::format("{}: {} failed after {} bytes", partial_.string(), action, at);
  if (means_full(code)) {
    throw OutOfResources(fmt::format("{}, with {} more at hand: {}{}; free some space or write elsewhere", what, bytes,
                                     std::generic_category().message(code), free_space(folder_of(file_))));
  }
  throw Error(fmt::format("{}: {}", what, std::generic_category().message(code)));
}

void AtomicFile::reserve(std::uint64_t bytes) {
  // What else is in the way of reserving, writing will show.
  if (::fallocate(descriptor_.get(), 0, 0, static_cast<off_t>(bytes)) != 0 && means_full(errno)) fail("reserving space", 0, bytes);
}

void AtomicFile::write(std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t done = ::write(descriptor_.get(), data.data(), data.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("writing", data.size());
    data = data.subspan(static_cast<std::size_t>(done));
    written_bytes_ += static_cast<std::uint64_t>(done);
  }
  if (written_bytes_ - flushing_bytes_ < kFlushBytes) return;
  start_flushing(flushing_bytes_, written_bytes_ - flushing_bytes_);
  flushing_bytes_ = written_bytes_;
}

/// The disk works while the copy goes on, and the flush at the end finds little left to do.
void AtomicFile::start_flushing(std::uint64_t at, std::uint64_t size) const {
  ::sync_file_range(descriptor_.get(), static_cast<off64_t>(at), static_cast<off64_t>(size), SYNC_FILE_RANGE_WRITE);
}

void AtomicFile::write_at(std::uint64_t at, std::span<const std::byte> data) {
  const std::uint64_t begin = at;
  const std::uint64_t size = data.size();
  while (!data.empty()) {
    const ssize_t done = ::pwrite(descriptor_.get(), data.data(), std::min(data.size(), kWriteBytes), static_cast<off_t>(at));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("writing", at, data.size());
    data = data.subspan(static_cast<std::size_t>(done));
    at += static_cast<std::uint64_t>(done);
  }
  if (size >= kFlushAtBytes) start_flushing(begin, size);
}

void AtomicFile::copy_at(std::uint64_t at, int from, const std::filesystem::path& from_path, std::uint64_t begin,
                         std::uint64_t size) {
  std::uint64_t done = 0;
  while (done < size) {
    auto in = static_cast<off64_t>(begin + done);
    auto out = static_cast<off64_t>(at + done);
    const ssize_t moved = ::copy_file_range(from, &in, descriptor_.get(), &out, static_cast<std::size_t>(size - done), 0);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0 && means_full(errno)) fail("writing", at + done, size - done);
    if (moved <= 0) break;
    done += static_cast<std::uint64_t>(moved);
  }
  if (done > 0 && done >= kFlushAtBytes) start_flushing(at, done);
  if (done == size) return;
  // Between two file systems, say, the kernel does not: what is wrong with either file shows when it is done by hand.
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min<std::uint64_t>(size - done, kFlushAtBytes)));
  while (done < size) {
    const std::span part(buffer.data(), static_cast<std::size_t>(std::min<std::uint64_t>(size - done, buffer.size())));
    read_at(from, from_path, begin + done, part);
    write_at(at + done, part);
    done += part.size();
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_.get()) != 0) fail("flushing to disk", 0);
  // Network file systems report a full disk here.
  if (::close(descriptor_.release()) != 0) fail("closing", 0);
  if (::rename(partial_.c_str(), file_.c_str()) != 0) fail("renaming to the final name", 0);
  pending_ = false;
  const Descriptor folder(::open(folder_of(file_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot flush a folder; the file itself is safe by then.
  if (folder.get() < 0 || (::fsync(folder.get()) != 0 && errno != EINVAL && errno != ENOTSUP)) {
    fail("flushing its folder", 0);
  }
}

}  // namespace moetrim::checkpoint_detail

namespace moetrim {

void write_file_atomically(const std::filesystem::path& file, std::string_view text) {
  checkpoint_detail::AtomicFile out(file);
  out.write(std::as_bytes(std::span(text)));
  out.commit();
}

}  // namespace moetrim
