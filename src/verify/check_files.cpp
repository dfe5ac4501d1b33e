// Files of the folder that do not belong there, and those that are missing.

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "verify/checks.h"

namespace moetrim::verify_detail {

namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr std::array<std::string_view, 6> kOtherWeights = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"};

/// Names of the weight files that belong, as far as can be said.
std::set<std::string> weight_files(const fs::path& folder, const Checkpoint* checkpoint) {
  std::set<std::string> out;
  if (checkpoint != nullptr) {
    for (const auto& file : checkpoint->files()) out.insert(file.path().filename().string());
    return out;
  }
  out.insert(kSingle);
  std::error_code ignored;
  if (!fs::exists(folder / kIndex, ignored)) return out;
  try {
    const auto index = read_json_file(folder / kIndex);
    const auto map = index.find("weight_map");
    if (map == index.end() || !map->is_object()) return out;
    out.clear();
    for (const auto& file : *map) {
      if (file.is_string()) out.insert(file.get<std::string>());
    }
  } catch (const InvalidInput&) {
    out.clear();  // opening the checkpoint has reported it
  }
  return out;
}

void check_file(const std::string& name, const std::set<std::string>& weights, Findings& findings) {
  const auto ends = [&](std::string_view ending) { return name.ends_with(ending); };
  if (ends(".partial") || name.starts_with(".moetrim-")) {
    add_error(findings, name, "is left over from a run that did not finish; run it again, or remove the file");
  } else if (ends(".safetensors") && !weights.contains(name)) {
    if (name.starts_with("consolidated")) {
      add_warning(findings, name, "holds a second copy of the weights that the index does not name");
    } else {
      add_error(findings, name, "is not part of the checkpoint; a stale file from earlier work, which some loaders would read");
    }
  } else if (ends(".index.json") && name != kIndex) {
    add_warning(findings, name, "is an index of other files than the safetensors weights");
  } else if (name == kIndex && weights == std::set<std::string>{kSingle}) {
    add_warning(findings, name, fmt::format("names {} alone, which needs no index", kSingle));
  } else if (std::any_of(kOtherWeights.begin(), kOtherWeights.end(), ends)) {
    add_warning(findings, name, "may be weights in another format; they are not checked, and are not what this checkpoint holds");
  }
}

bool is_folder_of_unfinished_work(const std::string& name) { return name.starts_with('.') && name.ends_with(".moetrim-partial"); }

}  // namespace

void check_files(const fs::path& folder, const Checkpoint* checkpoint, Findings& findings) {
  const std::set<std::string> weights = weight_files(folder, checkpoint);
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  for (const auto& name : names) check_file(name, weights, findings);
  if (is_folder_of_unfinished_work(fs::absolute(folder).lexically_normal().filename().string())) {
    add_error(findings, ".", "is the working folder of a run that did not finish; run it again");
  }
  const bool has_vocabulary = names.contains("vocab.json") && names.contains("merges.txt");
  const bool has_tiktoken = std::any_of(names.begin(), names.end(), [](const auto& name) { return name.ends_with(".tiktoken"); });
  if (!names.contains("tokenizer.json") && !names.contains("tokenizer.model") && !has_vocabulary && !has_tiktoken) {
    add_warning(findings, ".", "has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt)");
  }
}

void check_index(const Checkpoint& checkpoint, Findings& findings) {
  std::error_code ignored;
  if (!fs::exists(checkpoint.folder() / kIndex, ignored)) return;
  const auto index = read_json_file(checkpoint.folder() / kIndex);
  const auto metadata = index.find("metadata");
  if (metadata == index.end() || !metadata->is_object()) {
    add_error(findings, kIndex, "has no object \"metadata\"; transformers refuses to load without it");
    return;
  }
  const auto total = metadata->find("total_size");
  const std::string expected = fmt::format("the tensors have {} bytes", checkpoint.total_bytes());
  if (total == metadata->end()) {
    add_error(findings, kIndex, fmt::format("has no metadata.total_size; {}", expected));
  } else if (!total->is_number() || *total != checkpoint.total_bytes()) {
    add_error(findings, kIndex, fmt::format("metadata.total_size is {}, but {}", total->dump().substr(0, 40), expected));
  }
}

}  // namespace moetrim::verify_detail
