// The files that follow a checkpoint unchanged: tokenizer, chat template, generation settings, remote code, licence.

#include "export/side_files.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim::export_detail {

namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 17> kNames = {
    "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "image_processor_config.json",
    "feature_extractor_config.json", "config_sentence_transformers.json", "modules.json",
};
constexpr std::array<std::string_view, 4> kLicences = {"license", "notice", "use_policy", "copying"};
constexpr const char* kTemplates = "additional_chat_templates";

std::string lower(std::string_view text) {
  std::string out;
  for (const char c : text) out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

bool is_licence(std::string_view name) {
  const std::string plain = lower(name);
  const bool text = plain.find('.') == std::string::npos || plain.ends_with(".md") || plain.ends_with(".txt") ||
                    plain.ends_with(".pdf");
  return text && std::any_of(kLicences.begin(), kLicences.end(), [&](auto start) { return plain.starts_with(start); });
}

bool follows(std::string_view name) {
  const bool tokenizer = name.starts_with("tokenizer") && (name.ends_with(".json") || name.ends_with(".model"));
  return tokenizer || std::find(kNames.begin(), kNames.end(), name) != kNames.end() || name.ends_with(".tiktoken") ||
         name.ends_with(".py") || is_licence(name);
}

void add(std::vector<SideFile>& files, const fs::directory_entry& entry, std::string name) {
  std::error_code problem;
  if (!entry.is_regular_file(problem)) return;  // a folder, or a link to nothing
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  if (std::any_of(name.begin(), name.end(), control)) {
    throw InvalidInput(fmt::format("{}: file name {} has a control character; rename the file",
                                   entry.path().parent_path().string(), in_quotes(name)));
  }
  files.push_back({std::move(name), entry.file_size()});
}

}  // namespace

std::vector<SideFile> find_side_files(const fs::path& folder) {
  std::vector<SideFile> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (follows(name)) add(files, entry, name);
  }
  std::error_code problem;
  if (fs::is_directory(folder / kTemplates, problem)) {
    for (const auto& entry : fs::directory_iterator(folder / kTemplates)) {
      const std::string name = entry.path().filename().string();
      if (name.ends_with(".jinja")) add(files, entry, fmt::format("{}/{}", kTemplates, name));
    }
  }
  std::sort(files.begin(), files.end(), [](const SideFile& a, const SideFile& b) { return a.name < b.name; });
  return files;
}

void copy_side_file(const fs::path& from, const fs::path& to, const SideFile& file) {
  std::ifstream in(from / file.name, std::ios::binary);
  std::string text(file.bytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in || static_cast<std::uint64_t>(in.gcount()) != file.bytes) {
    throw InvalidInput(fmt::format("{}: cannot be read to its {} bytes", (from / file.name).string(), file.bytes));
  }
  fs::create_directories((to / file.name).parent_path());
  write_file_atomically(to / file.name, text);
}

}  // namespace moetrim::export_detail
