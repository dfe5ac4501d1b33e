// The dequantised twin: values, names, shapes and config; two folders that appear, and go on, together.

#include "testing.h"

#include <csignal>
#include <cstring>

#include <sys/wait.h>
#include <unistd.h>

#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/quantised.h"
#include "moetrim/verify.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
namespace fs = std::filesystem;

namespace {

constexpr ExportOptions kSmallShards{.shard_bytes = 300, .overwrite = false};

/// Of fused models only the experts are quantised.
bool is_matrix(const TinyModel& tiny, const TensorSpec& spec) {
  return tiny.fused ? spec.shape.size() == 3 : spec.name.ends_with("proj.weight");
}

/// What a plain tensor becomes: the tensors that are stored for it.
using Quantise = std::vector<TensorSpec> (*)(const TensorSpec&);

std::vector<TensorSpec> fp8_blocks(const TensorSpec& plain) {
  const auto blocks = [&](std::size_t axis) { return (plain.shape[axis] + 3) / 4; };
  return {{plain.name, Dtype::f8_e4m3, plain.shape},
          {plain.name + "_scale_inv", Dtype::f32, {blocks(0), blocks(1)}},
          {plain.name.substr(0, plain.name.size() - 7) + ".input_scale", Dtype::f32, {}}};
}

/// Stored output first, as gpt-oss is published.
std::vector<TensorSpec> mxfp4(const TensorSpec& plain) {
  const auto groups = plain.shape[1] / 32;
  return {{plain.name + "_blocks", Dtype::u8, {plain.shape[0], plain.shape[2], groups, 16}},
          {plain.name + "_scales", Dtype::u8, {plain.shape[0], plain.shape[2], groups}}};
}

void write_quantised(const fs::path& folder, const TinyModel& tiny, Quantise quantise, const char* config) {
  write_tiny_checkpoint(folder, tiny);
  std::vector<TensorSpec> stored;
  for (const auto& spec : tiny::specs(tiny)) {
    for (const auto& part : is_matrix(tiny, spec) ? quantise(spec) : std::vector{spec}) stored.push_back(part);
  }
  std::mt19937_64 random(7);
  SafetensorsWriter writer(folder / "model.safetensors", stored);
  for (const auto& spec : stored) {
    auto bytes = tiny::random_bytes(spec, random);
    if (spec.dtype == Dtype::u8) {
      // All codes, and exponents near 0.
      for (auto& byte : bytes) byte = static_cast<std::byte>(spec.name.ends_with("_scales") ? 120 + random() % 12 : random());
    }
    writer.write(bytes);
  }
  writer.finish();
  auto json = tiny::config(tiny);
  json["quantization_config"] = nlohmann::ordered_json::parse(config);
  write_text(folder / "config.json", json.dump(2));
}

void write_fp8(const fs::path& folder) {
  write_quantised(folder, {.width = 6, .vocabulary = 12}, fp8_blocks, R"({"quant_method": "fp8", "weight_block_size": [4, 4]})");
}

/// Square matrices, so that a shape cannot tell which way round they lie.
void write_mxfp4(const fs::path& folder) {
  write_quantised(folder, {.family = "gpt_oss", .fused = true, .hidden = 32, .width = 32}, mxfp4, R"({"quant_method": "mxfp4"})");
}

struct Work {
  Work(void (*write_source)(const fs::path&), const std::vector<int>& keep)
      : source((write_source(folder / "in"), Checkpoint::open(folder / "in"))), model(describe(source)),
        plan(plan_keeping(model, {keep})), request(prepare_export(model, plan, "test")),
        twin(prepare_twin(model, plan, request, Dtype::bf16, "test")) {}

  TwinResult write(const char* target = "out", const ExportOptions& options = kSmallShards, const ExportProgressFn& progress = {}) const {
    return export_with_twin(source, request, twin, folder / target, options, progress);
  }

  TempFolder folder;
  Checkpoint source;
  Model model;
  Plan plan;
  ExportRequest request;
  TwinRequest twin;
};

std::vector<std::uint16_t> bf16_of(const Checkpoint& checkpoint, const std::string& name) {
  const auto bytes = checkpoint.read(checkpoint.at(name));
  std::vector<std::uint16_t> out(bytes.size() / 2);
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

/// One matrix of a weight of the source, as its parts say.
std::vector<std::uint16_t> dequantised(const Checkpoint& source, const Quantisation& quantisation,
                                       const std::vector<std::string>& parts, std::int64_t rows, std::int64_t cols, int expert) {
  PackedWeight weight;
  std::vector<std::vector<std::byte>> bytes;
  bytes.reserve(parts.size());
  for (const auto& name : parts) {
    const Tensor& tensor = source.at(name);
    bytes.push_back(source.read(tensor));
    std::vector<std::int64_t> shape = tensor.shape;
    const std::byte* data = bytes.back().data();
    if (expert >= 0) {
      data += bytes.back().size() / static_cast<std::size_t>(shape[0]) * static_cast<std::size_t>(expert);
      shape.erase(shape.begin());
    }
    weight[split_part(name)->part] = StoredPart{name, tensor.dtype, shape, data};
  }
  std::vector<std::uint16_t> out(static_cast<std::size_t>(rows * cols));
  dequantise_bf16(weight, packing_of(weight, quantisation, rows, cols), out);
  return out;
}

std::vector<std::string> names_of(const Checkpoint& checkpoint) {
  std::vector<std::string> out;
  for (const auto& tensor : checkpoint.tensors()) out.push_back(tensor.name);
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::string> plain_names(TinyModel tiny, int keep) {
  tiny.experts = keep;
  std::vector<std::string> out;
  for (const auto& spec : tiny::specs(tiny)) out.push_back(spec.name);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

TEST_CASE("the twin of a checkpoint in fp8 blocks holds every weight dequantised and the rest as it is", "[export][twin]") {
  const std::vector<int> keep = {6, 0, 3};
  const Work work(write_fp8, keep);
  const auto result = work.write();
  CHECK(result.twin.folder == fs::canonical(work.folder / "out-bf16"));
  CHECK(result.twin.shards > 2);
  const Checkpoint pruned = Checkpoint::open(work.folder / "out");
  const Checkpoint twin = Checkpoint::open(work.folder / "out-bf16");
  CHECK(names_of(twin) == plain_names({.width = 6, .vocabulary = 12}, 3));
  CHECK(twin.total_bytes() == result.twin.tensor_bytes);
  std::size_t computed = 0;
  for (const Tensor& tensor : twin.tensors()) {
    const Tensor& stored = pruned.at(tensor.name);
    CAPTURE(tensor.name);
    CHECK(tensor.shape == stored.shape);
    if (stored.dtype != Dtype::f8_e4m3) {
      CHECK(tensor.dtype == stored.dtype);
      CHECK(twin.read(tensor) == pruned.read(stored));
      continue;
    }
    ++computed;
    CHECK(tensor.dtype == Dtype::bf16);
    CHECK(bf16_of(twin, tensor.name) == dequantised(pruned, work.model.quantisation, {tensor.name, tensor.name + "_scale_inv"},
                                                    tensor.shape[0], tensor.shape[1], -1));
  }
  CHECK(computed == 2 * (4 + 3 * keep.size()));
  for (const auto& finding : verify_checkpoint(work.folder / "out-bf16")) CHECK(finding.severity != Severity::error);
}

TEST_CASE("fused mxfp4 codes become the family's plain tensors, the other way round", "[export][twin]") {
  const std::vector<int> keep = {5, 2};
  const Work work(write_mxfp4, keep);
  work.write();
  const Checkpoint twin = Checkpoint::open(work.folder / "out-bf16");
  CHECK(names_of(twin) == plain_names({.family = "gpt_oss", .fused = true, .hidden = 32, .width = 32}, 2));
  for (const auto& [part, outputs] : {std::pair{"gate_up_proj", std::int64_t{64}}, std::pair{"down_proj", std::int64_t{32}}}) {
    const std::string name = std::string("model.layers.1.mlp.experts.") + part;
    CAPTURE(name);
    CHECK(twin.at(name).shape == std::vector<std::int64_t>{2, 32, outputs});
    std::vector<std::uint16_t> expected;
    for (const int expert : keep) {
      const auto rows = dequantised(work.source, work.model.quantisation, {name + "_blocks", name + "_scales"}, outputs, 32, expert);
      for (std::int64_t in = 0; in < 32; ++in) {
        for (std::int64_t out = 0; out < outputs; ++out) expected.push_back(rows[static_cast<std::size_t>(out * 32 + in)]);
      }
    }
    CHECK(bf16_of(twin, name) == expected);
  }
  const Checkpoint pruned = Checkpoint::open(work.folder / "out");
  for (const char* name : {"model.layers.0.mlp.router.weight", "model.layers.0.mlp.experts.down_proj_bias"}) {
    CHECK(twin.read(twin.at(name)) == pruned.read(pruned.at(name)));
  }
}

TEST_CASE("config, record and card of the twin say what it is", "[export][twin]") {
  const Work work(write_fp8, {0, 1});
  work.write();
  auto config = read_json_file(work.folder / "out/config.json");
  CHECK(config.erase("quantization_config") == 1);
  CHECK(read_json_file(work.folder / "out-bf16/config.json") == config);
  const auto record = read_json_file(work.folder / "out-bf16/moetrim.json");
  CHECK(record["dequantised"] == nlohmann::ordered_json{{"dtype", "bf16"}, {"weights", 20}, {"quant_method", "fp8"}});
  CHECK(record["plan"] == read_json_file(work.folder / "out/moetrim.json")["plan"]);
  const std::string card = read_bytes(work.folder / "out-bf16/README.md");
  CHECK_THAT(card, Catch::Matchers::Contains("bf16 twin of the pruned checkpoint"));
  CHECK(card.find("weights that remain are unchanged") == std::string::npos);
  CHECK(fs::exists(work.folder / "out-bf16/tokenizer.json"));
}

TEST_CASE("the first folder is what a run without a twin writes", "[export][twin]") {
  const Work work(write_fp8, {0, 1, 4});
  work.write();
  export_checkpoint(work.source, work.request, work.folder / "alone", kSmallShards);
  CHECK(folder_contents(work.folder / "out") == folder_contents(work.folder / "alone"));
}

TEST_CASE("a run with a twin that stops leaves neither folder, and goes on with both", "[export][twin][resume]") {
  const Work work(write_fp8, {0, 1, 4});
  work.write("undisturbed");
  const std::size_t stop = GENERATE(range<std::size_t>(1, 8));
  struct Stop {};
  CHECK_THROWS_AS(work.write("out", kSmallShards, [&](const ExportProgress& state) {
    if (state.done_shards == stop) throw Stop{};
  }), Stop);
  CHECK_FALSE(fs::exists(work.folder / "out"));
  CHECK_FALSE(fs::exists(work.folder / "out-bf16"));
  const auto result = work.write();
  CHECK(result.pruned.reused_shards + result.twin.reused_shards == stop);
  if (stop > 3) CHECK(result.twin.reused_shards > 0);  // in step, not one after the other
  CHECK(folder_contents(work.folder / "out") == folder_contents(work.folder / "undisturbed"));
  CHECK(folder_contents(work.folder / "out-bf16") == folder_contents(work.folder / "undisturbed-bf16"));
  CHECK_FALSE(fs::exists(work.folder / ".out.moetrim-partial"));
  CHECK_FALSE(fs::exists(work.folder / ".out-bf16.moetrim-partial"));
}

TEST_CASE("kill -9 while a twin is written: neither folder is there, and the next run ends with the same bytes", "[export][twin][resume]") {
  const Work work(write_fp8, {0, 1, 4});
  work.write("undisturbed");
  const int reports = GENERATE(1, 6, 11, 17, 24);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int seen = 0;
    work.write("out", kSmallShards, [&](const ExportProgress&) {
      if (++seen == reports) ::kill(::getpid(), SIGKILL);
    });
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  CHECK_FALSE(fs::exists(work.folder / "out"));
  CHECK_FALSE(fs::exists(work.folder / "out-bf16"));
  work.write();
  CHECK(folder_contents(work.folder / "out") == folder_contents(work.folder / "undisturbed"));
  CHECK(folder_contents(work.folder / "out-bf16") == folder_contents(work.folder / "undisturbed-bf16"));
}

TEST_CASE("a run that was killed between the two names gives the other one too", "[export][twin][resume]") {
  const Work work(write_fp8, {0, 1, 4});
  work.write();
  const auto before = folder_contents(work.folder.path());
  fs::rename(work.folder / "out", work.folder / ".out.moetrim-partial");
  const auto result = work.write();
  CHECK(result.twin.reused_shards == result.twin.shards);
  CHECK(folder_contents(work.folder.path()) == before);
}

TEST_CASE("a twin's folder that is taken is refused before anything is written", "[export][twin]") {
  const Work work(write_fp8, {0, 1});
  write_text(work.folder / "out-bf16/mine.txt", "x");
  const auto before = folder_contents(work.folder.path());
  CHECK_THROWS_AS(work.write(), UsageError);
  CHECK_THROWS_AS(describe_twin(work.source, work.twin, work.folder / "out", {}), UsageError);
  CHECK(folder_contents(work.folder.path()) == before);
  CHECK_FALSE(fs::exists(work.folder / ".out.moetrim-partial"));
}

TEST_CASE("the twin's estimate matches what is then written", "[export][twin]") {
  const Work work(write_mxfp4, {0, 1, 6});
  const auto estimate = describe_twin(work.source, work.twin, work.folder / "out/", kSmallShards);
  const auto result = work.write("out/");
  CHECK(estimate.after_bytes == result.twin.tensor_bytes);
  CHECK(estimate.shards == result.twin.shards);
  std::uint64_t written = 0;
  for (const auto& [name, text] : folder_contents(work.folder / "out-bf16")) written += text.size();
  CHECK(estimate.disk_bytes >= written);
}

TEST_CASE("no twin of what is not quantised, or cannot be computed, or in another dtype", "[export][twin]") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH(parse_twin_dtype("fp16"), Contains("fp16") && Contains("bf16"));
  CHECK_THROWS_AS(parse_twin_dtype(""), UsageError);
  TempFolder folder;
  const auto prepare = [&] {
    const Checkpoint source = Checkpoint::open(folder / "in");
    const Model model = describe(source);
    const Plan plan = plan_keeping(model, {{0, 1}});
    prepare_twin(model, plan, prepare_export(model, plan, "test"), Dtype::bf16, "test");
  };
  write_tiny_checkpoint(folder / "in", {});
  CHECK_THROWS_AS(prepare(), UsageError);
  CHECK_THROWS_WITH(prepare(), Contains("nothing to dequantise") && Contains("already in BF16"));
  fs::remove_all(folder / "in");
  write_fp8(folder / "in");
  auto config = read_json_file(folder / "in/config.json");
  config["quantization_config"] = {{"quant_method", "compressed-tensors"}, {"format", "of-tomorrow"}};
  write_text(folder / "in/config.json", config.dump());
  CHECK_THROWS_AS(prepare(), InvalidInput);
  CHECK_THROWS_WITH(prepare(), Contains("of-tomorrow") && Contains("--also-dtype"));
}
