// What the new model card takes over from the source: its name and its licence.

#include "export/base_model.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <string_view>

namespace moetrim::export_detail {

namespace {

namespace fs = std::filesystem;

bool is_word(std::string_view text, std::string_view extra) {
  return !text.empty() && text.size() <= 200 && std::all_of(text.begin(), text.end(), [&](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || extra.find(c) != std::string_view::npos;
  });
}

/// "org/name". Local paths are nobody's business and mean nothing elsewhere.
bool is_hub_name(std::string_view text) {
  const auto slash = text.find('/');
  if (slash == std::string_view::npos || text.starts_with('.')) return false;
  return is_word(text.substr(0, slash), "._-") && is_word(text.substr(slash + 1), "._-");
}

/// The hub's cache keeps a model in models--org--name/snapshots/HASH.
std::string name_in_cache(const fs::path& folder) {
  const std::string name = folder.parent_path().parent_path().filename().string();
  constexpr std::string_view kStart = "models--";
  if (folder.parent_path().filename() != "snapshots" || !name.starts_with(kStart)) return "";
  std::string hub = name.substr(kStart.size());
  const auto separator = hub.find("--");
  if (separator != std::string::npos) hub.replace(separator, 2, "/");
  return is_hub_name(hub) ? hub : "";
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  return text;
}

}  // namespace

std::string base_model(const Checkpoint& source) {
  const auto found = source.config().find("_name_or_path");
  if (found != source.config().end() && found->is_string() && is_hub_name(found->get_ref<const std::string&>())) {
    return found->get<std::string>();
  }
  fs::path folder = fs::absolute(source.folder()).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  if (std::string name = name_in_cache(folder); !name.empty()) return name;
  std::string name = folder.filename().string();
  // It goes into YAML and Markdown as it is.
  std::replace_if(name.begin(), name.end(), [](char c) { return !is_word(std::string_view(&c, 1), "._-"); }, '_');
  return name;
}

std::string licence_lines(const Checkpoint& source) {
  constexpr std::array<std::string_view, 3> kKeys = {"license", "license_name", "license_link"};
  constexpr int kLines = 400;
  std::ifstream in(source.folder() / "README.md");
  std::string line;
  std::string out;
  if (!std::getline(in, line) || trimmed(line) != "---") return out;
  for (int i = 0; i < kLines && std::getline(in, line) && trimmed(line) != "---"; ++i) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string_view key = std::string_view(line).substr(0, colon);
    const std::string_view value = trimmed(std::string_view(line).substr(colon + 1));
    // Plain scalars only: what is copied must not be able to open another YAML construct.
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end() || !is_word(value, "._-+/:%() ")) continue;
    if (out.find("\n" + std::string(key) + ":") == std::string::npos && !out.starts_with(std::string(key) + ":")) {
      out += std::string(key) + ": " + std::string(value) + "\n";
    }
  }
  return out;
}

}  // namespace moetrim::export_detail
