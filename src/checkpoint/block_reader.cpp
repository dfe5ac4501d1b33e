// Reads ranges of a checkpoint in order, several blocks under way at a time.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "posix_file.h"
#include "read_queue.h"

namespace moetrim {
namespace {

using namespace checkpoint_detail;

/// What O_DIRECT asks of offsets, lengths and memory on every file system known to us; also a page.
constexpr std::uint64_t kPage = 4096;

std::uint64_t page_down(std::uint64_t at) { return at / kPage * kPage; }
std::uint64_t page_up(std::uint64_t at) { return page_down(at + kPage - 1); }

/// Bytes [begin, end) of a file that one read fetches, and the parts of it that were asked for.
struct Block {
  struct Part {
    std::uint64_t begin = 0, size = 0;  ///< in the file
  };
  std::uint32_t file = 0;
  std::uint64_t begin = 0, end = 0;
  std::deque<Part> parts;
  std::size_t slot = 0;

  std::uint64_t pages_end() const { return page_up(end); }
};

/// A file opened for reads around the page cache.
struct Direct {
  Descriptor descriptor;
  bool works = true;
};

struct FreeMemory {
  void operator()(std::byte* memory) const { std::free(memory); }
};

}  // namespace

struct BlockReader::State {
  State(const Checkpoint& c, PageCache p)
      : checkpoint(c), cache(p), memory(kBlocks), queue(make_read_queue(kBlocks, p)) {
    for (std::size_t slot = 0; slot < kBlocks; ++slot) free_slots.push_back(slot);
  }

  void add_part(std::uint32_t file, Block::Part part);
  void start_reads();
  void start(Block& block);
  void finish(const Block& block);
  void release(const Block& block);
  int direct_descriptor(std::uint32_t file);

  const Checkpoint& checkpoint;
  const PageCache cache;
  std::map<std::uint32_t, Direct> direct;  // by file; descriptors stay open, for reads that are under way
  std::vector<std::unique_ptr<std::byte, FreeMemory>> memory;
  std::vector<std::size_t> free_slots;
  std::deque<Block> waiting, started;
  bool front_is_read = false;
  std::uint64_t bytes_read = 0;
  std::unique_ptr<ReadQueue> queue;  // last: gone before the memory that it reads into
};

BlockReader::BlockReader(const Checkpoint& checkpoint, PageCache cache)
    : state_(std::make_unique<State>(checkpoint, cache)) {}
BlockReader::~BlockReader() = default;

std::uint64_t BlockReader::bytes_read() const { return state_->bytes_read; }

void BlockReader::add(const ByteRange& range) {
  const Tensor& tensor = *range.tensor;
  if (range.begin > tensor.size || range.size > tensor.size - range.begin) {
    throw Error(fmt::format("tensor {} has {} bytes, but {} bytes from byte {} on were asked for", tensor.name, tensor.size,
                            range.size, range.begin));
  }
  if (range.size > 0) state_->add_part(tensor.file, {tensor.offset + range.begin, range.size});
}

/// Goes on with the last block where the part begins on its last page, and makes new ones.
void BlockReader::State::add_part(std::uint32_t file, Block::Part part) {
  const bool touches = !waiting.empty() && waiting.back().file == file && part.begin >= waiting.back().end &&
                       part.begin <= waiting.back().pages_end();
  if (!touches) waiting.push_back({.file = file, .begin = page_down(part.begin), .end = part.begin, .parts = {}});
  while (part.size > 0) {
    Block& block = waiting.back();
    const std::uint64_t room = block.begin + kBlockBytes - part.begin;
    const std::uint64_t taken = std::min(room, part.size);
    if (taken > 0) {
      block.parts.push_back({part.begin, taken});
      block.end = part.begin + taken;
      part.begin += taken;
      part.size -= taken;
    }
    if (part.size > 0) waiting.push_back({.file = file, .begin = page_down(part.begin), .end = part.begin, .parts = {}});
  }
}

bool BlockReader::hungry() const { return state_->waiting.size() < std::max<std::size_t>(state_->free_slots.size(), 1); }

std::span<const std::byte> BlockReader::next() {
  State& s = *state_;
  if (s.front_is_read && s.started.front().parts.empty()) {
    s.release(s.started.front());
    s.started.pop_front();
    s.front_is_read = false;
  }
  s.start_reads();
  if (s.started.empty()) return {};
  Block& block = s.started.front();
  if (!s.front_is_read) {
    s.finish(block);
    s.front_is_read = true;
  }
  const Block::Part part = block.parts.front();
  block.parts.pop_front();
  return {s.memory[block.slot].get() + (part.begin - block.begin), static_cast<std::size_t>(part.size)};
}

void BlockReader::State::start_reads() {
  while (!waiting.empty() && !free_slots.empty()) {
    started.push_back(std::move(waiting.front()));
    waiting.pop_front();
    start(started.back());
  }
}

void BlockReader::State::start(Block& block) {
  block.slot = free_slots.back();
  free_slots.pop_back();
  auto& bytes = memory[block.slot];
  if (!bytes) bytes.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, kBlockBytes)));
  if (!bytes) throw OutOfResources(fmt::format("no memory for a block of {} bytes to read into", kBlockBytes));
  int descriptor = cache == PageCache::bypass ? direct_descriptor(block.file) : -1;
  if (descriptor < 0) descriptor = checkpoint.files()[block.file].descriptor();
  queue->start(block.slot, descriptor, block.begin, {bytes.get(), block.pages_end() - block.begin});
}

/// What the queue did not read is read here and now, or it is said why it cannot be.
void BlockReader::State::finish(const Block& block) {
  const std::uint64_t wanted = block.end - block.begin;
  const ssize_t result = queue->finish(block.slot);
  const std::uint64_t got = result < 0 ? 0 : static_cast<std::uint64_t>(result);
  if (got < wanted) {
    const SafetensorsFile& file = checkpoint.files()[block.file];
    read_at(file.descriptor(), file.path(), block.begin + got,
            {memory[block.slot].get() + got, static_cast<std::size_t>(wanted - got)});
  }
  if (result == -EINVAL && cache == PageCache::bypass) direct.at(block.file).works = false;
  bytes_read += std::max(got, wanted);
}

void BlockReader::State::release(const Block& block) {
  free_slots.push_back(block.slot);
  if (cache == PageCache::use) return;
  // Also after a direct read: what could not be read directly was not. The advice may be refused; nothing depends on it.
  ::posix_fadvise(checkpoint.files()[block.file].descriptor(), static_cast<off_t>(block.begin),
                  static_cast<off_t>(block.pages_end() - block.begin), POSIX_FADV_DONTNEED);
}

/// The same file once more, whatever its path leads to by now; -1 where its file system takes no O_DIRECT.
int BlockReader::State::direct_descriptor(std::uint32_t file) {
  auto found = direct.find(file);
  if (found == direct.end()) {
    const std::string self = fmt::format("/proc/self/fd/{}", checkpoint.files()[file].descriptor());
    found = direct.emplace(file, Direct{Descriptor(::open(self.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT))}).first;
  }
  return found->second.works ? found->second.descriptor.get() : -1;
}

}  // namespace moetrim
