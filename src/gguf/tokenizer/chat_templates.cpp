// Copies chat templates.

#include "chat_templates.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <string>
#include <system_error>

#include <fmt/format.h>

#include "checkpoint/posix_file.h"
#include "checkpoint/quote.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"

namespace moetrim::gguf_detail {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::uint64_t kMaxTemplateBytes = std::uint64_t{16} << 20;

using Templates = std::map<std::string, std::string>;  ///< by name; "default" is the plain one

void add(Templates& templates, std::string name, std::string text, const fs::path& file) {
  // Keys have letters and digits; llama.cpp's converter replaces the rest alike.
  std::ranges::replace_if(name, [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  if (!checkpoint_detail::is_utf8(text)) {
    throw InvalidInput(fmt::format("{}: the chat template {} is not UTF-8", file.string(), name));
  }
  if (!templates.emplace(name, std::move(text)).second) {
    throw InvalidInput(fmt::format("{}: two chat templates are named {}; remove one", file.string(), name));
  }
}

void add_from_json(const Json& holder, const fs::path& file, Templates& templates) {
  const auto found = holder.find("chat_template");
  if (found == holder.end() || found->is_null()) return;
  if (found->is_string()) return add(templates, "default", found->get<std::string>(), file);
  const bool listed = found->is_array() && std::ranges::all_of(*found, [](const Json& entry) {
    return entry.is_object() && entry.contains("name") && entry["name"].is_string() && entry.contains("template") &&
           entry["template"].is_string() && !entry["name"].get_ref<const std::string&>().empty();
  });
  if (!listed) {
    throw InvalidInput(
        fmt::format("{}: chat_template is neither a string nor a list of named templates", file.string()));
  }
  for (const Json& entry : *found) {
    add(templates, entry["name"].get<std::string>(), entry["template"].get<std::string>(), file);
  }
}

Templates template_files(const fs::path& folder) {
  Templates templates;
  const fs::path plain = folder / "chat_template.jinja";
  const fs::path json = folder / "chat_template.json";
  if (fs::exists(plain)) {
    add(templates, "default", checkpoint_detail::read_text(plain, kMaxTemplateBytes), plain);
  } else if (fs::exists(json)) {
    add_from_json(read_json_file(json), json, templates);
  }
  const fs::path further = folder / "additional_chat_templates";
  if (!fs::is_directory(further)) return templates;
  std::error_code failure;
  const fs::directory_iterator entries(further, failure);
  if (failure) throw InvalidInput(fmt::format("{}: {}", further.string(), failure.message()));
  for (const auto& entry : entries) {
    if (entry.path().extension() != ".jinja") continue;
    const fs::path& file = entry.path();
    add(templates, file.stem().string(), checkpoint_detail::read_text(file, kMaxTemplateBytes), file);
  }
  return templates;
}

}  // namespace

void add_chat_templates(const fs::path& folder, const Json& config, GgufMetadata& keys) {
  Templates templates = template_files(folder);
  if (templates.empty()) add_from_json(config, folder / "tokenizer_config.json", templates);
  std::vector<std::string> names;
  for (auto& [name, text] : templates) {
    if (name == "default") continue;
    names.push_back(name);
    keys.set("tokenizer.chat_template." + name, std::move(text));
  }
  if (!names.empty()) keys.set("tokenizer.chat_templates", GgufArray::of_texts(std::move(names)));
  const auto plain = templates.find("default");
  if (plain != templates.end()) keys.set("tokenizer.chat_template", std::move(plain->second));
}

}  // namespace moetrim::gguf_detail
