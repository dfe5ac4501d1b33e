// Writes the files of a pruned GGUF model: ranges of the source, moved by several threads.

#include <algorithm>
#include <array>
#include <mutex>
#include <span>
#include <utility>

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <fmt/format.h>

#include "export/jobs.h"
#include "export/staging.h"
#include "gguf/rewrite/targets.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

namespace fs = std::filesystem;
using namespace gguf_detail;
using namespace export_detail;

constexpr std::uint64_t kMoveBytes = std::uint64_t{8} << 20;  ///< of one move: enough to read in one go, little enough to share out
constexpr std::size_t kMovesAhead = 6;                        ///< that the kernel reads while one is being copied
constexpr std::size_t kBlockBytes = std::size_t{1} << 20;     ///< of what is copied by hand

/// Neighbouring bytes of a tensor of the new file, from its byte `at` on, and where they come from.
struct Move {
  std::size_t tensor = 0;
  const GgufTensor* source = nullptr;
  std::uint64_t at = 0, size = 0;
  std::vector<GgufRange> ranges = {};
};

void add_moves(std::vector<Move>& moves, const GgufOutputTensor& tensor, std::size_t index) {
  Move move{.tensor = index, .source = tensor.source};
  for (const GgufRange& range : tensor.ranges) {
    for (std::uint64_t done = 0; done < range.size;) {
      const std::uint64_t part = std::min(kMoveBytes - move.size, range.size - done);
      move.ranges.push_back({range.offset + done, part});
      move.size += part;
      done += part;
      if (move.size < kMoveBytes) continue;
      const std::uint64_t next = move.at + move.size;
      moves.push_back(std::exchange(move, {.tensor = index, .source = tensor.source, .at = next}));
    }
  }
  if (move.size > 0) moves.push_back(std::move(move));
}

std::vector<Move> moves_of(const GgufOutputFile& file) {
  std::vector<Move> out;
  for (std::size_t i = 0; i < file.tensors.size(); ++i) add_moves(out, file.tensors[i], i);
  return out;
}

std::vector<GgufTensorSpec> specs_of(const GgufOutputFile& file) {
  std::vector<GgufTensorSpec> out;
  for (const GgufOutputTensor& tensor : file.tensors) out.push_back(tensor.spec);
  return out;
}

struct Sizes {
  std::uint64_t bytes = 0, parameters = 0;

  void add(const GgufTensorSpec& spec) {
    std::uint64_t elements = 1;
    for (const auto extent : spec.shape) elements *= extent;
    bytes += spec.bytes();
    parameters += elements;
  }
};

/// Whether another machine has the file. On a disk of this one copy_file_range takes half as much time again as copying by hand:
/// bytes do not begin at the same place of a page in the new file as in the old one.
bool is_remote(const GgufFile& file) {
  struct statfs system {};
  if (::fstatfs(file.descriptor(), &system) != 0) return false;
  constexpr std::array<std::uint32_t, 7> kRemote = {NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, CIFS_SUPER_MAGIC, SMB2_SUPER_MAGIC, CEPH_SUPER_MAGIC,
                                                    FUSE_SUPER_MAGIC, V9FS_MAGIC};
  return std::ranges::find(kRemote, static_cast<std::uint32_t>(system.f_type)) != kRemote.end();
}

/// Threads that do the moves of one file.
class Movers {
 public:
  Movers(const GgufFile& source, GgufWriter& writer, std::vector<Move> moves, const GgufWriteOptions& options, bool cached,
         const std::function<void(std::uint64_t)>& moved)
      : source_(source), writer_(writer), moves_(std::move(moves)), options_(options), cached_(cached),
        in_kernel_(options.in_kernel.value_or(is_remote(source))), moved_(moved),
        jobs_(moves_.size(), options.stop, "stopped by a signal; repeat the command to start again") {}

  /// @throws what a thread threw; Interrupted
  void run() {
    for (std::size_t i = 0; i < kMovesAhead; ++i) read_soon(i);
    jobs_.run(options_.writers, [this] { work(); });
  }

 private:
  void work() {
    std::vector<std::byte> block(in_kernel_ ? 0 : kBlockBytes);
    while (const auto next = jobs_.take()) {
      const Move& move = moves_[*next];
      read_soon(*next + kMovesAhead);
      if (in_kernel_) leave_to_kernel(move);
      else copy(move, block);
      if (!cached_) for_ranges(move, [&](std::uint64_t offset, std::uint64_t size) { source_.drop_cache(offset, size); });
      const std::lock_guard lock(mutex_);
      moved_(move.size);
    }
  }

  /// Blocks are filled from as many ranges as fit: large writes cost least.
  void copy(const Move& move, std::span<std::byte> block) {
    std::uint64_t at = move.at;
    std::size_t filled = 0;
    const auto write = [&] {
      writer_.write_at(move.tensor, at, block.first(filled));
      at += std::exchange(filled, 0);
    };
    for (const GgufRange& range : move.ranges) {
      for (std::uint64_t done = 0; done < range.size;) {
        const auto part = block.subspan(filled, static_cast<std::size_t>(std::min<std::uint64_t>(block.size() - filled, range.size - done)));
        source_.read(*move.source, range.offset + done, part);
        done += part.size();
        filled += part.size();
        if (filled == block.size()) write();
      }
    }
    if (filled > 0) write();
  }

  void leave_to_kernel(const Move& move) {
    std::uint64_t at = move.at;
    for_ranges(move, [&](std::uint64_t offset, std::uint64_t size) {
      writer_.copy_at(move.tensor, at, source_, offset, size);
      at += size;
    });
  }

  /// Calls with the place in the source's file and the size.
  template <class Function>
  static void for_ranges(const Move& move, Function function) {
    for (const GgufRange& range : move.ranges) function(move.source->offset + range.offset, range.size);
  }

  void read_soon(std::size_t index) const {
    if (index >= moves_.size()) return;
    for_ranges(moves_[index], [&](std::uint64_t offset, std::uint64_t size) {
      ::posix_fadvise(source_.descriptor(), static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_WILLNEED);
    });
  }

  const GgufFile& source_;
  GgufWriter& writer_;
  const std::vector<Move> moves_;
  const GgufWriteOptions& options_;
  const bool cached_, in_kernel_;
  const std::function<void(std::uint64_t)>& moved_;
  std::mutex mutex_;  ///< over moved_
  Jobs jobs_;
};

/// The working folder, which goes with whatever is in it unless it was emptied by publish.
class Workplace {
 public:
  explicit Workplace(const fs::path& target) : staging_(target, Access::alone) {
    staging_.clear([](const std::string&) { return true; });
  }
  ~Workplace() { staging_.discard(); }
  Workplace(const Workplace&) = delete;
  Workplace& operator=(const Workplace&) = delete;

  const fs::path& folder() const { return staging_.folder(); }

 private:
  Staging staging_;
};

void check_disk(const GgufEstimate& estimate, const fs::path& target) {
  if (estimate.disk_bytes <= estimate.free_disk_bytes) return;
  throw OutOfResources(fmt::format("{}: writing the model needs {} bytes of disk, {} are free; free some, or write elsewhere", target.string(),
                                   estimate.disk_bytes, estimate.free_disk_bytes));
}

/// What comes before a file's tensors.
std::uint64_t header_bytes(const GgufFile& file) {
  return file.tensors().empty() ? file.file_bytes() : file.tensors().front().offset;
}

GgufEstimate estimate(const GgufRewrite& rewrite, const Targets& targets, const GgufWriteOptions& options) {
  constexpr std::uint64_t kNewKeys = 4096, kPadding = 4096;
  GgufEstimate out{.free_disk_bytes = free_disk_bytes(targets.target), .outputs = targets.files};
  Sizes before, after;
  std::uint64_t headers = 0, ranges = 0, moves = 0;
  for (std::size_t i = 0; i < rewrite.files.size(); ++i) {
    const GgufFile& source = rewrite.source->files()[i];
    headers += header_bytes(source);
    out.disk_bytes += header_bytes(source) + kNewKeys + kPadding + (rewrite.files[i].tensors.size() * source.alignment());
    for (const GgufTensor& tensor : source.tensors()) before.add(tensor);
    for (const GgufOutputTensor& tensor : rewrite.files[i].tensors) {
      after.add(tensor.spec);
      ranges += tensor.ranges.size() + (tensor.spec.bytes() / kMoveBytes);
      moves += 1 + (tensor.spec.bytes() / kMoveBytes);
    }
  }
  out.before_bytes = before.bytes, out.before_parameters = before.parameters;
  out.after_bytes = after.bytes, out.after_parameters = after.parameters;
  out.disk_bytes += after.bytes;
  out.peak_memory_bytes = (3 * headers) + (moves * sizeof(Move)) + (2 * ranges * sizeof(GgufRange)) +
                          (static_cast<std::uint64_t>(options.writers) * kBlockBytes);
  return out;
}

void write_file(const GgufRewrite& rewrite, std::size_t index, const fs::path& path, const GgufWriteOptions& options,
                const std::function<void(std::uint64_t)>& moved) {
  const GgufOutputFile& file = rewrite.files[index];
  GgufWriter writer(path, file.metadata, specs_of(file));
  const bool cached = stays_cached(rewrite.source->total_bytes());
  Movers(rewrite.source->files()[index], writer, moves_of(file), options, cached, moved).run();
  writer.finish();
}

}  // namespace

GgufEstimate estimate_gguf(const GgufRewrite& rewrite, const fs::path& target, const GgufWriteOptions& options) {
  return estimate(rewrite, resolve_targets(rewrite, target, options.overwrite), options);
}

std::vector<fs::path> write_gguf(const GgufRewrite& rewrite, const fs::path& target, const GgufWriteOptions& options,
                                 const GgufProgressFn& progress) {
  try {
    const Targets targets = resolve_targets(rewrite, target, options.overwrite);
    const GgufEstimate need = estimate(rewrite, targets, options);
    check_disk(need, targets.target);
    std::uint64_t done = 0;
    const auto moved = [&](std::uint64_t bytes) {
      done += bytes;
      if (progress) progress(done, need.after_bytes);
    };
    const Workplace place(targets.target);
    for (std::size_t i = 0; i < rewrite.files.size(); ++i) {
      write_file(rewrite, i, place.folder() / targets.files[i].filename(), options, moved);
    }
    publish(place.folder(), targets);
    return targets.files;
  } catch (const fs::filesystem_error& problem) {
    throw Error(problem.what());
  }
}

}  // namespace moetrim
