// What verify finds in GGUF files.

#include "testing.h"

#include <fstream>

#include "gguf/given_model.h"
#include "moetrim/verify.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::given;
using moetrim::testing::TempFolder;
namespace fs = std::filesystem;

namespace {

std::string report(const fs::path& file) {
  std::string out;
  for (const auto& finding : verify_checkpoint(file, {.deep = true, .progress = {}})) {
    out += std::string(severity_name(finding.severity)) + ": " + finding.where + ": " + finding.what + "\n";
  }
  return out;
}

/// Writes two bytes over those of a tensor from byte `at` on.
void spoil(const fs::path& file, const std::string& tensor, std::uint64_t at, const std::string& bytes) {
  const std::uint64_t offset = GgufModel::open(file).find(tensor)->offset;
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(static_cast<std::streamoff>(offset + at));
  stream << bytes;
}

}  // namespace

TEST_CASE("a good GGUF file has no findings, and numbers that are none are found", "[verify]") {
  TempFolder folder;
  const GgufMoeModel model{.type = GgmlType::q4_k, .hidden = 256, .width = 256};
  const fs::path file = write_gguf_model(folder.path(), model);
  CHECK(report(file) == "");
  spoil(file, "token_embd.weight", 6, "\xFF\x7F");
  spoil(file, "blk.1.ffn_up_exps.weight", (3 * 144) + 2, std::string("\x00\xFC", 2));
  CHECK(report(file) == "error: token_embd.weight: element 3 is NaN or infinite\n"
                        "error: blk.1.ffn_up_exps.weight: block 3 has a scale that is NaN or infinite\n");
}

TEST_CASE("keys of a GGUF file that contradict its tensors are found, all of them", "[verify]") {
  TempFolder folder;
  GgufMoeModel model;
  model.keys = [](GgufMetadata& metadata) {
    metadata.set("qwen3moe.expert_count", std::uint32_t{5});
    metadata.set("qwen3moe.block_count", std::uint32_t{4});
  };
  const std::string text = report(write_gguf_model(folder.path(), model));
  CHECK(std::ranges::count(text, '\n') == 9);  // four tensors in each of two blocks, and a block that is not there
  CHECK_THAT(text, Catch::Matchers::Contains("error: blk.2.ffn_gate_inp.weight: has 6 experts, and qwen3moe.expert_count is 5"));
  CHECK_THAT(text, Catch::Matchers::Contains("error: blk.3: has no tensors"));
  model.keys = [](GgufMetadata& metadata) { metadata.set("general.architecture", std::string("gpt2")); };
  CHECK_THAT(report(write_gguf_model(folder.path(), model)), Catch::Matchers::Contains("warning: .: moetrim does not know the architecture \"gpt2\""));
}
