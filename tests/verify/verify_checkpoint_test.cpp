// What verify finds in folders that are broken in one way each.

#include "testing.h"

#include <limits>

#include "moetrim/error.h"
#include "moetrim/verify.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

template <class Edit>
void edit_json(const fs::path& file, Edit edit) {
  Json json = read_json_file(file);
  edit(json);
  write_text(file, json.dump());
}

/// One line per finding.
std::string report(const fs::path& folder, const VerifyOptions& options = {}) {
  std::string out;
  for (const auto& finding : verify_checkpoint(folder, options)) {
    out += std::string(severity_name(finding.severity)) + ": " + finding.where + ": " + finding.what + "\n";
  }
  return out;
}

}  // namespace

TEST_CASE("a good checkpoint has no findings", "[verify]") {
  const Family* family = GENERATE(from_range(families()));
  const bool fused = GENERATE(false, true);
  CAPTURE(family->name, fused);
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {.family = std::string(family->name), .fused = fused, .shards = 2});
  CHECK(report(folder.path(), {.deep = true, .progress = {}}) == "");
}

TEST_CASE("stale and unfinished files are named", "[verify]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {.shards = 2});
  const char* name = GENERATE("model.safetensors", "model-3-of-2.safetensors", "extra.safetensors", "model.safetensors.partial",
                              ".moetrim-done-model.safetensors");
  CAPTURE(name);
  write_text(folder / name, "x");
  const auto findings = verify_checkpoint(folder.path());
  const bool named = std::any_of(findings.begin(), findings.end(), [&](const Finding& finding) {
    return finding.severity == Severity::error && finding.where == name;
  });
  CHECK(named);
}

TEST_CASE("weights in other formats and foreign indexes are warnings", "[verify]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {});
  const char* name = GENERATE("pytorch_model.bin", "model.gguf", "pytorch_model.bin.index.json", "consolidated.safetensors");
  write_text(folder / name, "x");
  const auto findings = verify_checkpoint(folder.path());
  REQUIRE(findings.size() == 1);
  CHECK(findings[0].severity == Severity::warning);
  CHECK(findings[0].where == name);
}

TEST_CASE("an old index beside a new single file is named", "[verify]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {});
  write_text(folder / "model.safetensors.index.json", R"({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}})");
  CHECK_THAT(report(folder.path()), Catch::Matchers::Contains("error: model.safetensors: is not part"));
}

TEST_CASE("the index's total_size is checked", "[verify]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {.shards = 2});
  const fs::path index = folder / "model.safetensors.index.json";
  std::string expected;
  SECTION("wrong") {
    edit_json(index, [](Json& json) { json["metadata"]["total_size"] = 5; });
    expected = "metadata.total_size is 5, but the tensors have";
  }
  SECTION("of another type") {
    edit_json(index, [](Json& json) { json["metadata"]["total_size"] = "5"; });
    expected = "metadata.total_size is \"5\"";
  }
  SECTION("missing") {
    edit_json(index, [](Json& json) { json["metadata"].erase("total_size"); });
    expected = "has no metadata.total_size";
  }
  SECTION("without metadata") {
    edit_json(index, [](Json& json) { json.erase("metadata"); });
    expected = "has no object \"metadata\"";
  }
  CHECK_THAT(report(folder.path()), Catch::Matchers::Contains(expected));
}

TEST_CASE("holes in the numbering of experts are named, also in unknown families", "[verify]") {
  TempFolder folder;
  SafetensorsWriter writer(folder / "model.safetensors", {{"model.layers.0.x.experts.0.w.weight", Dtype::u8, {1}},
                                                          {"model.layers.0.x.experts.2.w.weight", Dtype::u8, {1}}});
  writer.write(std::as_bytes(std::span("ab", 2)));
  writer.finish();
  write_text(folder / "config.json", R"({"model_type": "nobody_knows"})");
  write_text(folder / "tokenizer.json", "{}");
  const std::string text = report(folder.path());
  CHECK_THAT(text, Catch::Matchers::Contains("error: model.layers.0.x.experts: has a hole in its numbering: expert 1 is missing"));
  CHECK_THAT(text, Catch::Matchers::Contains("warning: config.json: model_type \"nobody_knows\""));
}

TEST_CASE("config.json and weights that disagree are an error", "[verify]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {});
  const char* key = GENERATE("num_experts", "num_experts_per_tok", "hidden_size");
  CAPTURE(key);
  edit_json(folder / "config.json", [&](Json& json) { json[key] = 9; });
  CHECK_THAT(report(folder.path()), Catch::Matchers::StartsWith("error: config.json: "));
}

TEST_CASE("a missing tokenizer is a warning; a missing config or folder an error", "[verify]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {});
  fs::remove(folder / "tokenizer.json");
  CHECK_THAT(report(folder.path()), Catch::Matchers::StartsWith("warning: .: has no tokenizer"));
  fs::remove(folder / "config.json");
  CHECK_THAT(report(folder.path()), Catch::Matchers::StartsWith("error: .: "));
  CHECK_THAT(report(folder / "nowhere"), Catch::Matchers::StartsWith("error: .: "));
}

TEST_CASE("the deep check finds NaN and infinity in every floating type", "[verify]") {
  struct Case {
    Dtype dtype;
    std::string bytes;  // of three elements; the last one is the bad one
  };
  const auto sample = GENERATE(from_range(std::vector<Case>{
      {Dtype::bf16, std::string("\x00\x00\x7f\x7f\x80\x7f", 6)},
      {Dtype::f16, std::string("\x00\x00\xff\x7b\x00\xfc", 6)},
      {Dtype::f32, std::string("\x00\x00\x00\x00\xff\xff\x7f\x7f\x00\x00\xc0\x7f", 12)},
      {Dtype::f8_e4m3, std::string("\x00\x7e\xff", 3)},
      {Dtype::f8_e5m2, std::string("\x00\x7b\x7c", 3)},
      {Dtype::f8_e8m0, std::string("\x00\xfe\xff", 3)},
      {Dtype::f8_e4m3fnuz, std::string("\x00\x7f\x80", 3)},
      {Dtype::f64, std::string(16, '\0') + std::string("\x00\x00\x00\x00\x00\x00\xf0\x7f", 8)},
      {Dtype::c64, std::string(20, '\0') + std::string("\x00\x00\x80\xff", 4)}}));
  CAPTURE(dtype_name(sample.dtype));
  TempFolder folder;
  SafetensorsWriter writer(folder / "model.safetensors", {{"a", Dtype::u8, {1}}, {"w", sample.dtype, {3}}});
  writer.write(std::as_bytes(std::span("\xff", 1)));
  writer.write(std::as_bytes(std::span(sample.bytes)));
  writer.finish();
  write_text(folder / "config.json", R"({"model_type": "x"})");
  CHECK_THAT(report(folder.path(), {.deep = true, .progress = {}}), Catch::Matchers::Contains("error: w: element 2 is NaN or infinite"));
  CHECK(report(folder.path()).find("NaN") == std::string::npos);
}

TEST_CASE("the deep check tells how far it is, to the last byte", "[verify]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {});
  std::uint64_t last = 0, total = 1;
  VerifyOptions options{.deep = true, .progress = [&](std::uint64_t done, std::uint64_t all) {
    CHECK(done >= last);
    last = done;
    total = all;
  }};
  CHECK(verify_checkpoint(folder.path(), options).empty());
  CHECK(last == total);
}
