// Folders that export writes, and what it refuses.

#include "testing.h"

#include "moetrim/error.h"
#include "moetrim/export.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
namespace fs = std::filesystem;
using Contents = std::map<std::string, std::string>;

namespace {

/// Opened source, described, with a plan: what the command line would have at hand.
struct Job {
  explicit Job(const fs::path& folder, const std::vector<std::vector<int>>& keeps)
      : source(Checkpoint::open(folder)), model(describe(source)), plan(plan_keeping(model, keeps)),
        request(prepare_export(model, plan, "test")) {}

  ExportResult write(const fs::path& target, const ExportOptions& options = {}, const ExportProgressFn& progress = {}) const {
    return export_checkpoint(source, request, target, options, progress);
  }

  Checkpoint source;
  Model model;
  Plan plan;
  ExportRequest request;
};

std::map<std::string, std::vector<std::byte>> tensors_of(const fs::path& folder) {
  std::map<std::string, std::vector<std::byte>> out;
  const Checkpoint checkpoint = Checkpoint::open(folder);
  for (const auto& tensor : checkpoint.tensors()) out[tensor.name] = checkpoint.read(tensor);
  return out;
}

/// Names in the folder, hidden ones too.
std::vector<std::string> entries(const fs::path& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

constexpr ExportOptions kSmallShards{.shard_bytes = 900, .overwrite = false};

}  // namespace

TEST_CASE("a pruned checkpoint opens, describes and holds the kept bytes", "[export]") {
  const Family* family = GENERATE(from_range(families()));
  const bool fused = GENERATE(false, true);
  CAPTURE(family->name, fused);
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {.family = std::string(family->name), .fused = fused, .both_aliases = true, .shards = 2});
  const Job job(folder / "in", {{1, 2, 4, 6}});
  const ExportResult result = job.write(folder / "out");
  CHECK(result.shards == 1);
  CHECK(result.folder == fs::canonical(folder / "out"));

  const Checkpoint out = Checkpoint::open(folder / "out");
  const Model pruned = describe(out);
  CHECK(pruned.experts == 4);
  CHECK(out.total_bytes() == result.tensor_bytes);
  CHECK(out.config()["_note"] == "caf\u00e9");
  CHECK(read_bytes(folder / "out/config.json").find("caf\u00e9") != std::string::npos);
  for (std::size_t layer = 0; layer < pruned.layer.size(); ++layer) {
    const auto& before = job.model.layer[layer];
    const auto& after = pruned.layer[layer];
    const auto all = job.source.read(*before[Role::router].values());  // [7, H] f32
    std::vector<std::byte> expected;
    for (const std::ptrdiff_t expert : {1, 2, 4, 6}) {
      expected.insert(expected.end(), all.begin() + expert * 32, all.begin() + (expert + 1) * 32);
    }
    CHECK(out.read(*after[Role::router].values()) == expected);
    if (!after.fused()) {
      for (std::size_t part = 0; part < 3; ++part) {
        CHECK(out.read(*after.experts[3][part].values()) == job.source.read(*before.experts[6][part].values()));
      }
    }
  }
  CHECK(entries(folder.path()) == std::vector<std::string>{"in", "out"});  // no working folder stays
}

TEST_CASE("an identity plan writes the same tensors", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {.experts = 5, .shards = 3});
  Job(folder / "in", {{0, 1, 2, 3, 4}}).write(folder / "out", {.shard_bytes = 2000, .overwrite = false});
  CHECK(tensors_of(folder / "in") == tensors_of(folder / "out"));
}

TEST_CASE("shards hold what a single file would, within the limit, and the index is right", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {});
  const Job job(folder / "in", {{0, 3, 5}});
  job.write(folder / "one");
  const auto result = job.write(folder / "many", kSmallShards);
  CHECK(tensors_of(folder / "one") == tensors_of(folder / "many"));
  CHECK_FALSE(fs::exists(folder / "one/model.safetensors.index.json"));
  CHECK_FALSE(fs::exists(folder / "many/model.safetensors"));

  const Checkpoint many = Checkpoint::open(folder / "many");
  REQUIRE(many.files().size() == result.shards);
  REQUIRE(result.shards > 2);
  const auto index = read_json_file(folder / "many/model.safetensors.index.json");
  CHECK(index["metadata"]["total_size"] == many.total_bytes());
  CHECK(index["weight_map"].size() == many.tensors().size());
  std::string last;
  for (const auto& [name, file] : index["weight_map"].items()) {
    CHECK(last < name);
    last = name;
  }
  for (const auto& file : many.files()) {
    std::uint64_t bytes = 0;
    for (const auto& tensor : file.tensors()) {
      bytes += tensor.size;
      CHECK(tensor.offset % static_cast<std::uint64_t>(dtype_bits(tensor.dtype) / 8) == 0);
    }
    CHECK((bytes <= kSmallShards.shard_bytes || file.tensors().size() == 1));
  }
}

TEST_CASE("two runs write the same bytes", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {.family = "mixtral"});
  const Job job(folder / "in", {{6, 0, 3}});
  job.write(folder / "a", kSmallShards);
  Job(folder / "in", {{6, 0, 3}}).write(folder / "b", kSmallShards);
  CHECK(folder_contents(folder / "a") == folder_contents(folder / "b"));
}

TEST_CASE("files beside the weights follow; old weights and the old card do not", "[export]") {
  TempFolder folder;
  const fs::path in = folder / "in";
  write_tiny_checkpoint(in, {.experts = 5});
  for (const char* name : {"chat_template.jinja", "additional_chat_templates/tool.jinja", "modeling_x.py", "vocab.json",
                           "merges.txt", "qwen.tiktoken", "tokenizer.model", "NOTICE", "USE_POLICY.md", "preprocessor_config.json"}) {
    write_text(in / name, std::string("content of ") + name);
  }
  for (const char* name : {"pytorch_model.bin", "x.gguf", "original/params.json", "pytorch_model.bin.index.json", "notes.txt",
                           "additional_chat_templates/deep/x.jinja", ".gitattributes"}) {
    write_text(in / name, "stays");
  }
  write_text(in / "README.md", "---\nlicense: apache-2.0\nlicense_link: https://example.org/LICENSE\ntags:\n- old\n---\n# Old\n");
  const auto result = Job(in, {{0, 1, 4}}).write(folder / "out");
  const Contents out = folder_contents(folder / "out");
  std::vector<std::string> names;
  for (const auto& [name, text] : out) names.push_back(name);
  CHECK(names == std::vector<std::string>{
                     "LICENSE", "NOTICE", "README.md", "USE_POLICY.md", "additional_chat_templates/tool.jinja",
                     "chat_template.jinja", "config.json", "generation_config.json", "merges.txt", "model.safetensors",
                     "modeling_x.py", "moetrim.json", "preprocessor_config.json", "qwen.tiktoken", "tokenizer.json",
                     "tokenizer.model", "tokenizer_config.json", "vocab.json"});
  CHECK(result.copied_files.size() == names.size() - 4);
  CHECK(out.at("additional_chat_templates/tool.jinja") == "content of additional_chat_templates/tool.jinja");
  CHECK_THAT(out.at("README.md"), Catch::Matchers::StartsWith("---\nbase_model: in\nlicense: apache-2.0\nlicense_link: https://"));
  CHECK(out.at("README.md").find("# Old") == std::string::npos);
  const auto record = read_json_file(folder / "out/moetrim.json");
  CHECK(record["plan"]["layers"][0]["keep"] == nlohmann::ordered_json{0, 1, 4});
  CHECK(record["tool_version"] == "test");
}

TEST_CASE("a source of links, as in the hub's cache, gives plain files", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "blobs", {.shards = 2});
  const fs::path in = folder / "models--org--name/snapshots/abc";
  fs::create_directories(in);
  for (const auto& name : entries(folder / "blobs")) fs::create_symlink(fs::path("../../../blobs") / name, in / name);
  fs::create_symlink("nowhere", in / "vocab.json");
  const Job job(in, {{0, 1}});
  job.write(folder / "out");
  for (const auto& entry : fs::directory_iterator(folder / "out")) CHECK_FALSE(entry.is_symlink());
  CHECK(read_bytes(folder / "out/LICENSE") == "terms\n");
  CHECK_FALSE(fs::exists(folder / "out/vocab.json"));
  CHECK_THAT(job.request.card, Catch::Matchers::Contains("base_model: org/name\n"));
}

TEST_CASE("a target that is taken is refused before anything is written", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {});
  const Job job(folder / "in", {{0, 1}});
  fs::path target = folder / "out";
  ExportOptions options;
  SECTION("not empty") { write_text(target / "mine.txt", "x"); }
  SECTION("a file") { write_text(target, "x"); }
  SECTION("a link to nothing") { fs::create_symlink("/nowhere/at/all", target); }
  SECTION("not written by moetrim, with overwrite") {
    write_text(target / "mine.txt", "x");
    options.overwrite = true;
  }
  SECTION("the source, with overwrite") {
    target = folder / "in";
    write_text(target / "moetrim.json", "{}");
    options.overwrite = true;
  }
  if (!fs::exists(fs::symlink_status(target))) return;  // the run without a section
  const Contents before = folder_contents(folder.path());
  if (!fs::is_symlink(target)) {
    CHECK_THROWS_AS(job.write(target, options), UsageError);
    CHECK_THROWS_AS(describe_rewrite(job.source, job.request, target, options), UsageError);
  } else {
    CHECK_THROWS_AS(job.write(target, options), Error);
  }
  CHECK(folder_contents(folder.path()) == before);
}

TEST_CASE("an empty folder, also through a link, becomes the target", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {});
  const Job job(folder / "in", {{0, 1}});
  fs::create_directories(folder / "disk/out");
  fs::create_directory_symlink("disk/out", folder / "link");
  job.write(folder / "link/");
  CHECK(fs::is_symlink(folder / "link"));
  CHECK(Checkpoint::open(folder / "disk/out").total_bytes() > 0);
  job.write(folder / "new/deep/out");
  CHECK(folder_contents(folder / "new/deep/out") == folder_contents(folder / "disk/out"));
}

TEST_CASE("overwrite replaces a folder that moetrim wrote", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {});
  Job(folder / "in", {{0, 1}}).write(folder / "out", kSmallShards);
  const Job job(folder / "in", {{2, 3, 4}});
  CHECK_THROWS_AS(job.write(folder / "out"), UsageError);
  job.write(folder / "out", {.shard_bytes = 5'000'000, .overwrite = true});
  job.write(folder / "fresh");
  CHECK(folder_contents(folder / "out") == folder_contents(folder / "fresh"));
  CHECK(entries(folder.path()) == std::vector<std::string>{"fresh", "in", "out"});
}

TEST_CASE("the estimate matches what is then written", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {});
  const Job job(folder / "in", {{0, 1}});
  const auto estimate = describe_rewrite(job.source, job.request, folder / "out", kSmallShards);
  CHECK(entries(folder.path()) == std::vector<std::string>{"in"});
  const auto result = job.write(folder / "out", kSmallShards);
  CHECK(estimate.shards == result.shards);
  CHECK(estimate.after_bytes == result.tensor_bytes);
  CHECK(estimate.before_bytes == job.source.total_bytes());
  CHECK(estimate.after_tensors == Checkpoint::open(folder / "out").tensors().size());
  std::uint64_t written = 0;
  for (const auto& [name, text] : folder_contents(folder / "out")) written += text.size();
  CHECK(estimate.disk_bytes >= written);
  CHECK(estimate.free_disk_bytes > written);
  CHECK(estimate.peak_memory_bytes > 0);
}
