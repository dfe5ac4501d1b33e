// Finds the weights of a checkpoint folder by name, never by pattern: see weight_index.h.
#include "weight_index.h"

#include <algorithm>
#include <string_view>
#include <system_error>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "quote.h"

namespace moetrim::checkpoint_detail {
namespace {

namespace fs = std::filesystem;

/// A dangling link counts: opening it says better what is wrong than "no weights" would.
bool has_entry(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

/// The names in the folder that end in one of the endings of weights, for a message.
std::string weights_seen(const fs::path& folder) {
  constexpr std::size_t kShown = 4;
  std::set<std::string> seen;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string ending = entry.path().extension().string();
    for (const std::string_view known : {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"}) {
      if (ending == known) seen.insert(in_quotes(entry.path().filename().string()));
    }
  }
  if (seen.empty()) return "it holds no weights at all";
  const std::vector<std::string> shown(seen.begin(), std::next(seen.begin(), static_cast<std::ptrdiff_t>(
                                                                                 std::min(kShown, seen.size()))));
  return fmt::format("it holds {}{}", fmt::join(shown, ", "),
                     seen.size() > kShown ? fmt::format(" and {} more", seen.size() - kShown) : "");
}

InvalidInput nothing_to_read(const fs::path& folder) {
  return InvalidInput(fmt::format("{}: has neither '{}' nor '{}' ({}); shards need their index, and other formats must "
                                  "be converted to safetensors first",
                                  folder.string(), kSingleName, kIndexName, weights_seen(folder)));
}

void check_file_name(const fs::path& index, const std::string& tensor, const std::string& name) {
  const auto refuse = [&](std::string_view why) -> InvalidInput {
    return InvalidInput(fmt::format("{}: tensor {} is assigned to the file {}, which {}; expected a plain file name",
                                    index.string(), in_quotes(tensor), in_quotes(name), why));
  };
  if (name.empty() || name == ".") throw refuse("is no file name");
  if (has_control_character(name)) throw refuse("has a control character");
  if (name.front() == '/') throw refuse("is an absolute path");
  if (name.find('/') != name.npos) throw refuse("leads to another folder");
  if (name.find("..") != name.npos) throw refuse("has '..'");
}

void read_index(const fs::path& index, WeightFiles& weights) {
  const nlohmann::ordered_json json = read_json_file(index);
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (map == json.end() || !map->is_object()) {
    throw InvalidInput(fmt::format("{}: expected an object with an object 'weight_map', from tensor to file name",
                                   index.string()));
  }
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) {
      throw InvalidInput(fmt::format("{}: tensor {} must be assigned to a file name, got a JSON {}", index.string(),
                                     in_quotes(tensor), file.type_name()));
    }
    const auto& name = file.get_ref<const std::string&>();
    if (weights.files.insert(name).second) check_file_name(index, tensor, name);
    weights.file_of.emplace(tensor, name);
  }
  if (weights.files.empty()) throw InvalidInput(fmt::format("{}: its 'weight_map' is empty", index.string()));
}

void check_shards_exist(const fs::path& folder, const WeightFiles& weights) {
  std::vector<std::string> missing;
  for (const std::string& name : weights.files) {
    if (!has_entry(folder / name)) missing.push_back(name);
  }
  if (missing.empty()) return;
  throw InvalidInput(fmt::format("{}: names the file {}, which is not in the folder{}; complete the download",
                                 (folder / kIndexName).string(), in_quotes(missing.front()),
                                 missing.size() == 1 ? "" : fmt::format(" (nor are {} others)", missing.size() - 1)));
}

}  // namespace

WeightFiles find_weight_files(const fs::path& folder) {
  const bool has_single = has_entry(folder / kSingleName);
  WeightFiles weights;
  weights.has_index = has_entry(folder / kIndexName);
  if (!weights.has_index) {
    if (!has_single) throw nothing_to_read(folder);
    weights.files.insert(kSingleName);
    return weights;
  }
  read_index(folder / kIndexName, weights);
  if (has_single && weights.files != std::set<std::string>{kSingleName}) {
    throw InvalidInput(fmt::format("{}: has '{}' beside '{}', which names other files; some readers would take the one "
                                   "and some the others, so remove the stale one",
                                   folder.string(), kSingleName, kIndexName));
  }
  check_shards_exist(folder, weights);
  return weights;
}

}  // namespace moetrim::checkpoint_detail
