// Interrupted exports: what they leave, and that the same request ends with the bytes of an undisturbed run.

#include "testing.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <future>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/verify.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
namespace fs = std::filesystem;

namespace {

constexpr ExportOptions kSmallShards{.shard_bytes = 400, .overwrite = false};
constexpr const char* kPartial = ".out.moetrim-partial";

struct Stop {};

/// Stops when that many shards are done.
ExportProgressFn stop_after(std::size_t shards) {
  return [shards](const ExportProgress& state) {
    if (state.done_shards == shards) throw Stop{};
  };
}

struct Work {
  Work() : source((write_tiny_checkpoint(folder / "in", {}), Checkpoint::open(folder / "in"))),
           model(describe(source)), request(prepare_export(model, plan_keeping(model, {{0, 3, 5}}), "test")) {
    export_checkpoint(source, request, folder / "undisturbed", kSmallShards);
  }
  ExportResult write(const ExportProgressFn& progress = {}, const ExportOptions& options = kSmallShards) const {
    return export_checkpoint(source, request, folder / "out", options, progress);
  }
  void check_equal() const { CHECK(folder_contents(folder / "out") == folder_contents(folder / "undisturbed")); }

  TempFolder folder;
  Checkpoint source;
  Model model;
  ExportRequest request;
};

/// Mounts a small disk; not every machine that runs the tests permits it.
class TinyDisk {
 public:
  TinyDisk(fs::path at, const char* size) : at_(std::move(at)) {
    fs::create_directories(at_);
    mounted_ = ::mount("none", at_.c_str(), "tmpfs", 0, size) == 0;
  }
  ~TinyDisk() {
    if (mounted_) ::umount(at_.c_str());
  }
  bool mounted() const { return mounted_; }

 private:
  fs::path at_;
  bool mounted_ = false;
};

}  // namespace

TEST_CASE("a run that stops leaves no target and is taken up after its finished shards", "[export][resume]") {
  Work work;
  const std::size_t shards = GENERATE(1, 2, 5);
  CHECK_THROWS_AS(work.write(stop_after(shards)), Stop);
  CHECK_FALSE(fs::exists(work.folder / "out"));
  CHECK_FALSE(fs::exists(work.folder / kPartial / "config.json"));
  CHECK_THROWS_AS(Checkpoint::open(work.folder / kPartial), InvalidInput);
  const auto result = work.write();
  CHECK(result.reused_shards == shards);
  work.check_equal();
  CHECK_FALSE(fs::exists(work.folder / kPartial));
}

TEST_CASE("a run that stops before its first shard leaves nothing", "[export][resume]") {
  Work work;
  CHECK_THROWS_AS(work.write(stop_after(0)), Stop);
  CHECK_FALSE(fs::exists(work.folder / kPartial));
}

TEST_CASE("finished shards are believed only if nobody touched them and they belong to the job", "[export][resume]") {
  Work work;
  CHECK_THROWS_AS(work.write(stop_after(3)), Stop);
  const fs::path partial = work.folder / kPartial;
  ExportOptions options = kSmallShards;
  std::size_t reused = 3;
  fs::path shard;
  for (const auto& entry : fs::directory_iterator(partial)) {
    if (entry.path().filename().string().starts_with("model-00002")) shard = entry.path();
  }
  const fs::path note = partial / (".moetrim-done-" + shard.filename().string());
  REQUIRE(fs::exists(note));
  SECTION("a byte changed") {
    std::string bytes = read_bytes(shard);
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    write_text(shard, bytes);
    fs::last_write_time(shard, fs::last_write_time(shard) + std::chrono::milliseconds(1));  // some kernels count in jiffies
    reused = 2;
  }
  SECTION("shortened") {
    fs::resize_file(shard, fs::file_size(shard) / 2);
    reused = 2;
  }
  SECTION("removed") {
    fs::remove(shard);
    reused = 2;
  }
  SECTION("note damaged") {
    write_text(note, "{\"bytes\": 3");
    reused = 2;
  }
  SECTION("note with other types") {
    write_text(note, R"({"bytes": [1]})");
    reused = 2;
  }
  SECTION("a note alone") {
    write_text(partial / ".moetrim-done-model-00009-of-00009.safetensors", "{}");
  }
  SECTION("strange files beside") {
    write_text(partial / (shard.filename().string() + ".0123.partial"), "x");
    write_text(partial / "config.json", "x");
    write_text(partial / "folder/x", "x");
  }
  SECTION("another shard size") {
    options.shard_bytes = 800;
    reused = 0;
  }
  const auto result = work.write({}, options);
  CHECK(result.reused_shards == reused);
  if (options.shard_bytes == kSmallShards.shard_bytes) work.check_equal();
  CHECK_FALSE(fs::exists(partial));
}

TEST_CASE("kill -9 at any moment: nothing looks finished, and the next run ends with the same bytes", "[export][resume]") {
  Work work;
  const int blocks = GENERATE(range(1, 12));
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int seen = 0;
    work.write([&](const ExportProgress&) {
      if (++seen == blocks) ::kill(::getpid(), SIGKILL);
    });
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  CHECK_FALSE(fs::exists(work.folder / "out"));
  const auto findings = verify_checkpoint(work.folder / kPartial);
  REQUIRE_FALSE(findings.empty());
  CHECK(findings.front().severity == Severity::error);
  work.write();
  work.check_equal();
  CHECK_FALSE(fs::exists(work.folder / kPartial));
}

TEST_CASE("a second run on the same target is refused while the first one works", "[export][resume]") {
  Work work;
  fs::create_directories(work.folder / kPartial);
  const int held = ::open((work.folder / kPartial).c_str(), O_RDONLY | O_DIRECTORY);
  REQUIRE(::flock(held, LOCK_EX) == 0);
  CHECK_THROWS_WITH(work.write(), Catch::Matchers::Contains("another run"));
  ::close(held);
  work.write();
  work.check_equal();
}

TEST_CASE("a working folder that is a link is not followed", "[export][resume]") {
  Work work;
  write_text(work.folder / "precious/file", "x");
  fs::create_directory_symlink("precious", work.folder / kPartial);
  CHECK_THROWS_AS(work.write(), Error);
  CHECK(read_bytes(work.folder / "precious/file") == "x");
}

TEST_CASE("too small a disk is refused before the start", "[export][disk]") {
  Work work;
  const TinyDisk disk(work.folder / "disk", "size=8k");
  if (!disk.mounted()) {
    WARN("skipped: this process may not mount a file system");
    return;
  }
  CHECK_THROWS_AS(export_checkpoint(work.source, work.request, work.folder / "disk/out", kSmallShards), OutOfResources);
  CHECK(fs::is_empty(work.folder / "disk"));
}

TEST_CASE("a disk that fills up meanwhile leaves no target, and the work goes on when there is room", "[export][disk]") {
  Work work;
  const TinyDisk disk(work.folder / "disk", "size=1m");
  if (!disk.mounted()) {
    WARN("skipped: this process may not mount a file system");
    return;
  }
  const fs::path filler = work.folder / "disk/filler";
  const auto fill = [&](const ExportProgress& state) {
    if (state.done_shards != 2 || fs::exists(filler)) return;
    std::ofstream(filler) << std::string(2 << 20, 'x');
  };
  const fs::path target = work.folder / "disk/out";
  CHECK_THROWS_AS(export_checkpoint(work.source, work.request, target, kSmallShards, fill), OutOfResources);
  CHECK_FALSE(fs::exists(target));
  fs::remove(filler);
  CHECK(export_checkpoint(work.source, work.request, target, kSmallShards).reused_shards == 2);
  CHECK(folder_contents(target) == folder_contents(work.folder / "undisturbed"));
}

TEST_CASE("several writers write the bytes of one, also after a stop", "[export][writers]") {
  Work work;
  ExportOptions options = kSmallShards;
  options.writers = 4;
  SECTION("undisturbed") { work.write({}, options); }
  SECTION("into one file") {
    options.shard_bytes = ExportOptions{}.shard_bytes;
    export_checkpoint(work.source, work.request, work.folder / "one", {});
    work.write({}, options);
    CHECK(folder_contents(work.folder / "out") == folder_contents(work.folder / "one"));
    return;
  }
  SECTION("stopped by what the progress throws") {
    CHECK_THROWS_AS(work.write(stop_after(2), options), Stop);
    CHECK(work.write({}, options).reused_shards >= 2);
  }
  SECTION("stopped by a signal: the shards in work are finished") {
    std::atomic<bool> stop = false;
    options.stop = &stop;
    std::size_t done = 0;
    const auto progress = [&](const ExportProgress& state) {
      done = state.done_shards;
      if (done == 2) stop = true;
    };
    CHECK_THROWS_AS(work.write(progress, options), Interrupted);
    CHECK_FALSE(fs::exists(work.folder / "out"));
    stop = false;
    CHECK(work.write({}, options).reused_shards == done);
  }
  work.check_equal();
  CHECK_FALSE(fs::exists(work.folder / kPartial));
}

namespace {

ExportOptions slice(int number, int count) {
  ExportOptions options = kSmallShards;
  options.share = ShardShare{.number = number, .count = count};
  return options;
}

}  // namespace

TEST_CASE("slices in any order write the bytes of one run, and the last one completes the folder", "[export][slices]") {
  Work work;
  const auto order = GENERATE(std::vector{1, 2, 3}, std::vector{3, 1, 2}, std::vector{2, 3, 1});
  std::size_t written = 0;
  for (const int number : order) {
    CHECK_FALSE(fs::exists(work.folder / "out"));
    const auto result = work.write({}, slice(number, 3));
    written += result.written_shards;
    CHECK((result.awaited_shards == 0) == (number == order.back()));
    if (number == order.front()) CHECK(work.write({}, slice(number, 3)).written_shards == 0);  // doubled
  }
  work.check_equal();
  CHECK_FALSE(fs::exists(work.folder / kPartial));
  const auto again = work.write({}, slice(2, 3));  // doubled, and late
  CHECK(written == again.shards);
  CHECK(again.written_shards == 0);
}

TEST_CASE("slices at the same time write the bytes of one run", "[export][slices]") {
  Work work;
  std::vector<std::future<ExportResult>> runs;
  for (const int number : {1, 2, 3}) runs.push_back(std::async(std::launch::async, [&, number] { return work.write({}, slice(number, 3)); }));
  for (auto& run : runs) CHECK_NOTHROW(run.get());
  work.check_equal();
  CHECK_FALSE(fs::exists(work.folder / kPartial));
}

TEST_CASE("a slice that stops is taken up, by itself or by a whole run", "[export][slices][resume]") {
  Work work;
  CHECK_THROWS_AS(work.write(stop_after(1), slice(1, 2)), Stop);
  CHECK(work.write({}, slice(2, 2)).awaited_shards > 0);
  SECTION("by itself") { CHECK(work.write({}, slice(1, 2)).reused_shards == 1); }
  SECTION("by a whole run") {
    const auto result = work.write();
    CHECK(result.reused_shards > 1);
    CHECK(result.written_shards + result.reused_shards == result.shards);
  }
  work.check_equal();
}

TEST_CASE("slices of another request are refused, and a slice that is being written", "[export][slices]") {
  Work work;
  const ExportRequest other = prepare_export(work.model, plan_keeping(work.model, {{1, 3, 5}}), "test");
  ExportOptions options = slice(2, 2);
  SECTION("another plan") {
    work.write({}, slice(1, 2));
    CHECK_THROWS_AS(export_checkpoint(work.source, other, work.folder / "out", options), InvalidInput);
  }
  SECTION("another shard size") {
    work.write({}, slice(1, 2));
    options.shard_bytes = 800;
    CHECK_THROWS_AS(work.write({}, options), InvalidInput);
  }
  SECTION("the same slice, or a whole run, while it is at work") {
    const auto meanwhile = [&](const ExportProgress& state) {
      if (state.done_shards != 1) return;
      CHECK_THROWS_WITH(work.write({}, slice(1, 2)), Catch::Matchers::Contains("slice 1/2"));
      CHECK_THROWS_WITH(work.write(), Catch::Matchers::Contains("another run"));
    };
    work.write(meanwhile, slice(1, 2));
  }
  CHECK(work.write({}, slice(2, 2)).awaited_shards == 0);  // nothing was lost
  work.check_equal();
}
