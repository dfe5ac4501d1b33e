// Interrupted exports: what they leave, and that the same request ends with the bytes of an undisturbed run.

#include "testing.h"

#include <csignal>

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

TEST_CASE("finished shards are believed only if they still have their bytes and belong to the job", "[export][resume]") {
  Work work;
  CHECK_THROWS_AS(work.write(stop_after(3)), Stop);
  const fs::path partial = work.folder / kPartial;
  ExportOptions options = kSmallShards;
  std::size_t reused = 3;
  fs::path shard;
  for (const auto& entry : fs::directory_iterator(partial)) {
    if (entry.path().filename().string().starts_with("model-00002")) shard = entry.path();
  }
  SECTION("a byte changed") {
    std::string bytes = read_bytes(shard);
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    write_text(shard, bytes);
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
  SECTION("journal damaged") {
    write_text(partial / ".moetrim-journal", "{\"job\": 3");
    reused = 0;
  }
  SECTION("journal with other types") {
    write_text(partial / ".moetrim-journal", R"({"job": 3, "shards": [1]})");
    reused = 0;
  }
  SECTION("strange files beside") {
    write_text(partial / "model-00009-of-00009.safetensors.partial", "x");
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
