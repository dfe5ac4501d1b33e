// Finds, compiles and renders chat templates with the rules of transformers 5.

#include "text/chat_template.h"

#include <map>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "text/checkpoint_text.h"
#include "text/hf_call.h"

namespace moetrim::text {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

/// Source and origin of each named template.
struct Source {
  std::string origin;
  std::string text;
};
using Sources = std::map<std::string, Source>;

void add_named_templates(const Json& list, const std::string& origin, Sources& sources) {
  for (const Json& entry : list) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() ||
        !entry.contains("template") || !entry["template"].is_string()) {
      throw InvalidInput(fmt::format(
          "{}: every entry of \"chat_template\" needs the strings \"name\" and \"template\"", origin));
    }
    const auto name = entry["name"].get<std::string>();
    sources[name] = {fmt::format("{}, chat template \"{}\"", origin, excerpt(name)),
                     entry["template"].get<std::string>()};
  }
}

void add_json_templates(const Json& holder, const fs::path& file, Sources& sources) {
  const auto found = holder.find("chat_template");
  if (found == holder.end() || found->is_null()) return;
  if (found->is_string()) {
    sources["default"] = {fmt::format("{}, \"chat_template\"", file.string()), found->get<std::string>()};
  } else if (found->is_array()) {
    add_named_templates(*found, file.string(), sources);
  } else {
    throw InvalidInput(fmt::format("{}: \"chat_template\" is neither a string nor a list of named templates",
                                   file.string()));
  }
}

/// Files of their own win over tokenizer_config.json as a whole.
Sources template_files(const fs::path& folder) {
  Sources sources;
  if (auto text = read_if_present(folder / "chat_template.jinja")) {
    sources["default"] = {(folder / "chat_template.jinja").string(), std::move(*text)};
  } else {
    const fs::path json = folder / "chat_template.json";
    add_json_templates(read_json_object(json), json, sources);
  }
  const fs::path tool_use = folder / "additional_chat_templates" / "tool_use.jinja";
  if (auto text = read_if_present(tool_use)) sources["tool_use"] = {tool_use.string(), std::move(*text)};
  return sources;
}

}  // namespace

ChatTemplate::ChatTemplate(std::string origin, const std::string& source) : origin_(std::move(origin)) {
  HfChat* chat = nullptr;
  HfBytes error{};
  if (hf_chat_new(source.data(), source.size(), &chat, &error) != 0) {
    throw InvalidInput(fmt::format("{}: the template does not compile: {}", origin_, excerpt(take(error))));
  }
  chat_.reset(chat);
}

std::string ChatTemplate::render(const Json& variables) const {
  const std::string json = variables.dump();
  HfBytes out{};
  HfBytes error{};
  if (hf_chat_render(chat_.get(), json.data(), json.size(), &out, &error) != 0) {
    throw InvalidInput(fmt::format("{}: the template failed: {}", origin_, excerpt(take(error))));
  }
  return take(out);
}

ChatTemplates find_chat_templates(const fs::path& folder, const Json& config) {
  Sources sources = template_files(folder);
  if (sources.empty()) add_json_templates(config, folder / "tokenizer_config.json", sources);
  ChatTemplates templates;
  const auto compile = [&](const char* name) -> std::unique_ptr<ChatTemplate> {
    const auto found = sources.find(name);
    if (found == sources.end()) return nullptr;
    return std::make_unique<ChatTemplate>(found->second.origin, found->second.text);
  };
  templates.plain = compile("default");
  templates.with_tools = compile("tool_use");
  return templates;
}

Json template_messages(const Json& messages) {
  if (!messages.is_array()) throw InvalidInput("\"messages\" is not an array of objects");
  Json result = Json::array();
  for (const Json& message : messages) {
    if (!message.is_object()) throw InvalidInput("\"messages\" holds something that is not an object");
    Json reasoning;
    for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
      if (reasoning.is_null() && message.contains(name)) reasoning = message[name];
    }
    Json plain = Json::object();
    if (!reasoning.is_null()) plain["thinking"] = reasoning;
    for (const auto& [name, value] : message.items()) {
      if (!value.is_null()) plain[name] = value;
    }
    if (!reasoning.is_null()) plain["reasoning_content"] = reasoning;
    result.push_back(std::move(plain));
  }
  return result;
}

}  // namespace moetrim::text
