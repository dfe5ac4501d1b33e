// The hidden folder beside the target in which a checkpoint is built.

#include "export/staging.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <fmt/format.h>

#include "export/journal.h"
#include "moetrim/error.h"

namespace moetrim::export_detail {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, std::string_view doing, int code) {
  throw Error(fmt::format("{}: {} failed: {}", path.string(), doing, std::generic_category().message(code)));
}

/// Swaps the two names in one step, so that there is a whole checkpoint under the target's name at any moment.
void exchange(const fs::path& staged, const fs::path& target) {
  if (::renameat2(AT_FDCWD, staged.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) return;
  if (errno != EINVAL && errno != ENOSYS) fail(target, "replacing the folder", errno);
  throw Error(fmt::format("{}: this file system cannot replace a folder in one step; remove the folder and run the same "
                          "command again, the work so far is kept", target.string()));
}

constexpr std::string_view kJobStart = ".moetrim-job-";
constexpr std::string_view kShareStart = ".moetrim-slice-";

/// False when another run holds the lock.
bool try_lock(int descriptor, int kind, const fs::path& path) {
  if (::flock(descriptor, kind | LOCK_NB) == 0) return true;
  if (errno != EWOULDBLOCK) fail(path, "locking", errno);
  return false;
}

/// An empty file; false when it is there already.
bool create(const fs::path& file) {
  const int descriptor = ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0 && errno != EEXIST) fail(file, "creating it", errno);
  if (descriptor >= 0) ::close(descriptor);
  return descriptor >= 0;
}

bool is_same_folder(int descriptor, const fs::path& folder) {
  struct stat open {}, named {};
  return ::fstat(descriptor, &open) == 0 && ::lstat(folder.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
         open.st_ino == named.st_ino;
}

}  // namespace

fs::path absolute_target(const fs::path& target) {
  if (target.empty()) throw UsageError("the output folder has no name");
  fs::path path = fs::weakly_canonical(fs::absolute(target));
  if (!path.has_filename()) path = path.parent_path();  // "out/"
  if (!path.has_filename()) throw UsageError(fmt::format("{} cannot be an output folder", target.string()));
  return path;
}

fs::path resolve_target(const fs::path& target, const fs::path& source, bool overwrite) {
  const fs::path path = absolute_target(target);
  const fs::file_status status = fs::symlink_status(path);
  if (!fs::exists(status)) return path;
  if (!fs::is_directory(status)) throw UsageError(fmt::format("output {} exists and is not a folder", path.string()));
  if (fs::is_empty(path)) return path;
  if (!overwrite) {
    throw UsageError(fmt::format("output folder {} is not empty; name another, or remove it first", path.string()));
  }
  std::error_code ignored;
  if (fs::equivalent(path, source, ignored)) throw UsageError(fmt::format("output {} is the source itself", path.string()));
  if (!fs::is_regular_file(path / "moetrim.json")) {
    throw UsageError(fmt::format("output folder {} has no moetrim.json, so moetrim did not write it and does not replace it; "
                                 "name another, or remove it first", path.string()));
  }
  return path;
}

std::uint64_t free_disk_bytes(const fs::path& target) {
  fs::path folder = fs::absolute(target);
  std::error_code ignored;
  while (!fs::is_directory(folder, ignored) && folder.has_relative_path()) folder = folder.parent_path();
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0) return std::numeric_limits<std::uint64_t>::max();
  return std::uint64_t{status.f_bavail} * status.f_frsize;
}

bool stays_cached(std::uint64_t source_bytes) {
  const auto pages = static_cast<std::uint64_t>(std::max(0L, ::sysconf(_SC_PHYS_PAGES)));
  return source_bytes < pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) / 4;
}

void flush_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail(folder, "opening the folder", errno);
  const int code = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  // Some network file systems cannot flush a folder, and keep it safe by themselves.
  if (code != 0 && code != EINVAL && code != ENOTSUP) fail(folder, "flushing the folder to disk", code);
}

fs::path staging_folder(const fs::path& target) {
  return target.parent_path() / fmt::format(".{}.moetrim-partial", target.filename().string());
}

Staging::Staging(fs::path target, Access access) : target_(std::move(target)), access_(access) {
  folder_ = staging_folder(target_);
  fs::create_directories(target_.parent_path());
  const fs::file_status status = fs::symlink_status(folder_);
  if (fs::exists(status) && !fs::is_directory(status)) {
    throw Error(fmt::format("{}: is needed as working folder, but exists and is not a folder; remove it", folder_.string()));
  }
  fs::create_directory(folder_);
  descriptor_ = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor_ < 0) fail(folder_, "opening the working folder", errno);
  if (try_lock(descriptor_, access == Access::alone ? LOCK_EX : LOCK_SH, folder_)) return;
  ::close(std::exchange(descriptor_, -1));
  throw Error(fmt::format("{}: another run is writing this output; wait for it, or name another output", target_.string()));
}

Staging::~Staging() {
  for (const int descriptor : {share_, descriptor_}) {
    if (descriptor >= 0) ::close(descriptor);
  }
}

void Staging::claim(const std::string& job) {
  const std::string mine = std::string(kJobStart) + job;
  const auto is_other = [&](const std::string& name) { return name.starts_with(kJobStart) && name != mine; };
  const auto has_other = [&] {
    return std::any_of(fs::directory_iterator(folder_), fs::directory_iterator(),
                       [&](const auto& entry) { return is_other(entry.path().filename().string()); });
  };
  if (access_ == Access::alone) {
    if (!fs::exists(folder_ / mine)) clear([](const std::string&) { return true; });
    create(folder_ / mine);
    return;
  }
  // Two of different jobs that come at the same moment both find the other, and both leave.
  const bool made = create(folder_ / mine);
  if (!has_other()) return;
  if (made) fs::remove(folder_ / mine);
  throw InvalidInput(fmt::format("{}: holds unfinished work of another request (another plan, source, --mtp or --shard-size); give "
                                 "all slices the same, or remove the folder", folder_.string()));
}

void Staging::lock_share(const ShardShare& share) {
  const fs::path file = folder_ / fmt::format("{}{}-of-{}", kShareStart, share.number, share.count);
  share_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (share_ < 0) fail(file, "opening the lock file", errno);
  if (try_lock(share_, LOCK_EX, file)) return;
  throw Error(fmt::format("{}: another run is writing slice {}/{} of this output; wait for it", target_.string(), share.number,
                          share.count));
}

void Staging::clear(const std::function<bool(const std::string& name)>& unwanted) const {
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (unwanted(entry.path().filename().string())) fs::remove_all(entry.path());
  }
}

bool Staging::lock_alone(const std::function<void()>& wait) {
  constexpr auto kPause = std::chrono::milliseconds(50);
  ::flock(descriptor_, LOCK_UN);
  for (;; std::this_thread::sleep_for(kPause)) {
    // Under another name, or under none: somebody finished it.
    if (!is_same_folder(descriptor_, folder_)) return false;
    if (try_lock(descriptor_, LOCK_EX, folder_)) return is_same_folder(descriptor_, folder_);
    wait();
  }
}

bool is_claim(std::string_view name) { return name.starts_with(kJobStart); }

bool is_working_file(std::string_view name) {
  return is_claim(name) || name.starts_with(kShareStart) || name.starts_with(kJournalStart);
}

void Staging::publish(bool overwrite) {
  flush_folder(folder_);
  if (overwrite && fs::exists(target_) && !fs::is_empty(target_)) {
    exchange(folder_, target_);
    fs::remove_all(folder_);
  } else if (::rename(folder_.c_str(), target_.c_str()) != 0) {  // also replaces an empty folder
    fail(target_, "renaming the finished folder to this name", errno);
  }
  flush_folder(target_.parent_path());
}

void Staging::discard() {
  std::error_code ignored;  // called while another error is on its way
  fs::remove_all(folder_, ignored);
}

}  // namespace moetrim::export_detail
