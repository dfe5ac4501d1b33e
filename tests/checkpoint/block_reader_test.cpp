// Reading ahead in blocks: the same bytes and the same refusals by io_uring and by threads, cached or around the cache.
#include "testing.h"

#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "checkpoint/posix_file.h"
#include "checkpoint/read_queue.h"
#include "given_files.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"

using namespace moetrim;

namespace {

/// The way of reading that the environment asks for, until the end of the test.
class Way {
 public:
  explicit Way(const std::string& name) { ::setenv("MOETRIM_READER", name.c_str(), 1); }
  ~Way() { ::unsetenv("MOETRIM_READER"); }
};

/// A checkpoint of u8 tensors, back to back and in this order, whose bytes tell where they stand.
Checkpoint checkpoint_of(const given::Folder& folder, const std::vector<std::size_t>& sizes) {
  folder.file("config.json", "{}");
  std::vector<TensorSpec> specs;
  for (const std::size_t size : sizes) {
    specs.push_back({fmt::format("t{}", specs.size()), Dtype::u8, {static_cast<std::int64_t>(size)}});
  }
  SafetensorsWriter writer(folder / "model.safetensors", specs);
  for (std::size_t i = 0; i < sizes.size(); ++i) writer.write(given::counting_bytes(sizes[i], static_cast<unsigned>(i)));
  writer.finish();
  return Checkpoint::open(folder.path());
}

std::vector<std::byte> all(BlockReader& reader) {
  std::vector<std::byte> out;
  for (auto bytes = reader.next(); !bytes.empty(); bytes = reader.next()) out.insert(out.end(), bytes.begin(), bytes.end());
  return out;
}

std::vector<std::string> ways() {
  std::vector<std::string> out{"pread"};
  if (checkpoint_detail::make_uring_queue(1) != nullptr) out.push_back("uring");
  return out;
}

template <class Action>
void for_every_way(Action action) {
  for (const std::string& way : ways()) {
    const Way chosen(way);
    for (const PageCache cache : {PageCache::use, PageCache::bypass}) {
      CAPTURE(way, static_cast<int>(cache));
      action(cache);
    }
  }
}

}  // namespace

TEST_CASE("ranges come in the order asked for, whatever the way of reading", "[checkpoint][reader]") {
  const given::Folder folder;
  // More than the ring holds; ends on, before and behind borders of pages and of blocks; neighbours within a page.
  const Checkpoint checkpoint = checkpoint_of(folder, {13'000'001, 0, 4095, 1, 4 << 20, 37, 18'000'000});
  const auto& t = checkpoint.tensors();
  const std::vector<ByteRange> ranges{{&t[0], 0, t[0].size},     {&t[1], 0, 0},       {&t[2], 0, 4095},     {&t[3], 0, 1},
                                      {&t[4], 5, t[4].size - 6}, {&t[5], 36, 1},      {&t[6], 0, t[6].size}, {&t[0], 4096, 4096},
                                      {&t[6], t[6].size - 1, 1}, {&t[0], 12'999'999, 2}};
  std::vector<std::byte> expected;
  for (const ByteRange& range : ranges) {
    const auto tensor = checkpoint.read(*range.tensor);
    const auto begin = tensor.begin() + static_cast<std::ptrdiff_t>(range.begin);
    expected.insert(expected.end(), begin, begin + static_cast<std::ptrdiff_t>(range.size));
  }
  for_every_way([&](PageCache cache) {
    BlockReader reader(checkpoint, cache);
    for (const ByteRange& range : ranges) reader.add(range);
    CHECK_FALSE(reader.hungry());
    const bool equal = all(reader) == expected;
    CHECK(equal);
    CHECK(reader.hungry());
    CHECK(reader.bytes_read() >= expected.size());
    CHECK(reader.bytes_read() < expected.size() + 100'000);
    reader.add(ranges[2]);  // goes on after the end
    CHECK(all(reader).size() == 4095);
  });
}

TEST_CASE("a file that became shorter is refused with the sentence of a plain read", "[checkpoint][reader]") {
  for_every_way([](PageCache cache) {
    const given::Folder folder;
    const Checkpoint checkpoint = checkpoint_of(folder, {9'000'000});
    for (const std::uint64_t size : {6'000'000, 8192, 20}) {
      std::filesystem::resize_file(folder / "model.safetensors", size);
      BlockReader reader(checkpoint, cache);
      reader.add({&checkpoint.tensors()[0], 0, 9'000'000});
      const std::string said = given::refusal([&] { all(reader); });
      CAPTURE(size, said);
      CHECK(given::has(said, fmt::format("{}: ends at byte {} while", (folder / "model.safetensors").string(), size)));
      CHECK(given::has(said, "became shorter after it was opened"));
    }
  });
}

TEST_CASE("a read that fails is told, not short", "[checkpoint][reader]") {
  for_every_way([](PageCache cache) {
    const auto queue = checkpoint_detail::make_read_queue(2, cache);
    const auto memory = checkpoint_detail::open_for_reading("/proc/self/mem");  // nothing lies at address 0
    std::vector<std::byte> out(4096);
    queue->start(1, memory.get(), 0, out);
    queue->start(0, -1, 0, out);
    CHECK(queue->finish(1) == -EIO);
    CHECK(queue->finish(0) == -EBADF);
  });
}

TEST_CASE("reads around the page cache leave nothing in it", "[checkpoint][reader]") {
  const given::Folder folder;
  const Checkpoint checkpoint = checkpoint_of(folder, {8'000'000});
  const auto& file = checkpoint.files()[0];
  if (given::cached_bytes(file.path()) == 0 || !given::drop_cache(file.path())) {
    WARN("the file system of the temporary folder does not let its page cache be dropped");
    return;
  }
  BlockReader around(checkpoint, PageCache::bypass);
  around.add({&checkpoint.tensors()[0], 100, 7'000'000});
  all(around);
  CHECK(given::cached_bytes(file.path()) == 0);
  BlockReader through(checkpoint, PageCache::use);
  through.add({&checkpoint.tensors()[0], 100, 7'000'000});
  all(through);
  CHECK(given::cached_bytes(file.path()) >= 7'000'000);
}

TEST_CASE("an unknown way of reading is refused", "[checkpoint][reader]") {
  const Way chosen("mmap");
  CHECK_THROWS_AS(checkpoint_detail::make_read_queue(1, PageCache::use), UsageError);
}
