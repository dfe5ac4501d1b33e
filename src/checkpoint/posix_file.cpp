// Opening and reading files by position: see posix_file.h.
#include "posix_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::checkpoint_detail {
namespace {

std::string reason(int code) { return std::generic_category().message(code); }

bool raise_open_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return false;
  limit.rlim_cur = limit.rlim_max;
  return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

int try_open(const std::filesystem::path& file) {
  // O_NONBLOCK: a FIFO under a checkpoint's name must not hang us; it means nothing for regular files.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  int descriptor = -1;
  do {
    descriptor = ::open(file.c_str(), kFlags);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0 && errno == EMFILE && raise_open_file_limit()) descriptor = ::open(file.c_str(), kFlags);
  return descriptor;
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(value_, other.value_);
  return *this;
}

Descriptor::~Descriptor() {
  if (value_ >= 0) ::close(value_);
}

int Descriptor::release() { return std::exchange(value_, -1); }

Descriptor open_for_reading(const std::filesystem::path& file) {
  Descriptor descriptor(try_open(file));
  if (descriptor.get() < 0) {
    const int code = errno;
    if (code == EMFILE || code == ENFILE) {
      throw OutOfResources(fmt::format(
          "{}: cannot be opened because too many files are open; raise the limit (ulimit -n)", file.string()));
    }
    throw InvalidInput(fmt::format("{}: cannot be opened for reading: {}", file.string(), reason(code)));
  }
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) {
    throw Error(fmt::format("{}: cannot be examined: {}", file.string(), reason(errno)));
  }
  if (!S_ISREG(status.st_mode)) {
    throw InvalidInput(fmt::format("{}: expected a regular file, got {}", file.string(),
                                   S_ISDIR(status.st_mode) ? "a folder" : "a special file"));
  }
  return descriptor;
}

std::uint64_t size_of(const Descriptor& descriptor, const std::filesystem::path& file) {
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) {
    throw Error(fmt::format("{}: its size cannot be read: {}", file.string(), reason(errno)));
  }
  return static_cast<std::uint64_t>(status.st_size);
}

void read_at(int descriptor, const std::filesystem::path& file, std::uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = ::pread(descriptor, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw Error(fmt::format("{}: reading {} bytes at byte {} failed: {}", file.string(), out.size(), offset,
                              reason(errno)));
    }
    if (got == 0) {
      throw InvalidInput(fmt::format("{}: ends at byte {} while {} more bytes were expected; the file became shorter "
                                     "after it was opened, so leave it alone and start again",
                                     file.string(), offset, out.size()));
    }
    out = out.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

std::string read_text(const std::filesystem::path& file, std::uint64_t limit_bytes) {
  const Descriptor descriptor = open_for_reading(file);
  const std::uint64_t bytes = size_of(descriptor, file);
  if (bytes > limit_bytes) {
    throw InvalidInput(fmt::format("{}: has {} bytes, more than the {} that such a file may have", file.string(), bytes,
                                   limit_bytes));
  }
  std::string text(bytes, '\0');
  read_at(descriptor.get(), file, 0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace moetrim::checkpoint_detail
