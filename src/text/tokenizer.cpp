// Opens a checkpoint's tokenizer with the settings that transformers would give it.

#include <array>
#include <limits>
#include <map>
#include <string>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "moetrim/error.h"
#include "moetrim/text.h"
#include "text/chat_template.h"
#include "text/checkpoint_text.h"
#include "text/hf_call.h"

namespace moetrim {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::array kNamedTokens{"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};

struct FreeTokenizer {
  void operator()(HfTokenizer* tokenizer) const noexcept { hf_tokenizer_free(tokenizer); }
};

/// A token written as "..." or {"content": "...", flags}; null when `token` is neither.
Json as_added_token(const Json& token, bool special) {
  Json added = token;
  if (token.is_string()) {
    added = {{"content", token}, {"normalized", false}};
  } else if (!token.is_object() || !token.contains("content") || !token["content"].is_string()) {
    return nullptr;
  }
  if (special) added["special"] = true;
  return added;
}

/// bos_token, eos_token, ... as objects; tokenizer_config.json wins over special_tokens_map.json.
Json named_tokens(const Json& config, const Json& special_map) {
  Json tokens = Json::object();
  for (const char* name : kNamedTokens) {
    for (const Json* file : {&config, &special_map}) {
      const auto found = file->find(name);
      if (found == file->end() || tokens.contains(name)) continue;
      if (Json token = as_added_token(*found, true); !token.is_null()) tokens[name] = std::move(token);
    }
  }
  return tokens;
}

/// Tokens that tokenizer_config.json lists, in the order in which transformers adds those missing.
Json listed_tokens(const Json& config, const Json& named) {
  Json tokens = Json::array();
  const auto add = [&](const Json& token, bool special) {
    if (Json added = as_added_token(token, special); !added.is_null()) tokens.push_back(std::move(added));
  };
  if (const auto decoder = config.find("added_tokens_decoder"); decoder != config.end() && decoder->is_object()) {
    std::map<long long, const Json*> by_id;
    for (const auto& [id, token] : decoder->items()) {
      if (id.size() <= 10 && id.find_first_not_of("0123456789") == std::string::npos && !id.empty()) {
        by_id[std::stoll(id)] = &token;
      }
    }
    for (const auto& [id, token] : by_id) add(*token, false);
  }
  for (const auto& [name, token] : named.items()) add(token, true);
  for (const char* list : {"additional_special_tokens", "extra_special_tokens"}) {
    const auto found = config.find(list);
    if (found == config.end() || !found->is_array()) continue;
    for (const Json& token : *found) add(token, true);
  }
  return tokens;
}

std::string read_tokenizer_json(const fs::path& folder) {
  if (auto json = text::read_if_present(folder / "tokenizer.json")) return std::move(*json);
  for (const char* other : {"tokenizer.model", "vocab.json", "tiktoken.model", "tekken.json"}) {
    std::error_code ignored;  // an unreadable folder has been reported above
    if (!fs::exists(folder / other, ignored)) continue;
    throw InvalidInput(fmt::format(
        "{}: no tokenizer.json, only {}; make one with transformers' AutoTokenizer.from_pretrained(...)"
        ".save_pretrained(...), or use task rows with \"input_ids\"",
        folder.string(), other));
  }
  throw InvalidInput(fmt::format(
      "{}: no tokenizer.json; copy the original checkpoint's tokenizer files there, or use task rows with "
      "\"input_ids\"",
      folder.string()));
}

}  // namespace

struct Tokenizer::Parts {
  std::unique_ptr<HfTokenizer, FreeTokenizer> tokenizer;
  text::ChatTemplates templates;
  fs::path folder;
  Json special_tokens;  // name -> spelling, the variables every template sees
  std::string eos_token;
};

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::open(const fs::path& folder) {
  const std::string json = read_tokenizer_json(folder);
  const Json config = text::read_json_object(folder / "tokenizer_config.json");
  const Json named = named_tokens(config, text::read_json_object(folder / "special_tokens_map.json"));
  // add_bos_token and add_eos_token are left unread, as transformers does beside a tokenizer.json:
  // the file's own post-processor decides.
  const std::string added = listed_tokens(config, named).dump();
  auto parts = std::make_unique<Parts>();
  HfTokenizer* tokenizer = nullptr;
  HfBytes error{};
  if (hf_tokenizer_new(json.data(), json.size(), added.data(), added.size(), &tokenizer, &error) != 0) {
    throw InvalidInput(fmt::format("{}: {}", (folder / "tokenizer.json").string(), text::excerpt(text::take(error))));
  }
  parts->tokenizer.reset(tokenizer);
  parts->folder = folder;
  parts->special_tokens = Json::object();
  for (const auto& [name, token] : named.items()) parts->special_tokens[name] = token["content"];
  parts->eos_token = parts->special_tokens.value("eos_token", std::string());
  parts->templates = text::find_chat_templates(folder, config);
  return Tokenizer(std::move(parts));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  HfIds ids{};
  HfBytes error{};
  if (hf_tokenizer_encode(parts_->tokenizer.get(), text.data(), text.size(), add_special_tokens, &ids, &error) != 0) {
    throw InvalidInput(text::excerpt(text::take(error)));
  }
  const auto release = [](HfIds* held) { hf_ids_free(*held); };
  const std::unique_ptr<HfIds, decltype(release)> guard(&ids, release);
  std::vector<std::int32_t> result;
  result.reserve(ids.len);
  for (std::size_t i = 0; i < ids.len; ++i) {
    if (ids.data[i] > static_cast<std::uint32_t>(std::numeric_limits<std::int32_t>::max())) {
      throw InvalidInput(fmt::format("{}: token id {} does not fit 31 bits",
                                     (parts_->folder / "tokenizer.json").string(), ids.data[i]));
    }
    result.push_back(static_cast<std::int32_t>(ids.data[i]));
  }
  return result;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  std::vector<std::uint32_t> plain;
  plain.reserve(ids.size());
  for (const std::int32_t id : ids) {
    if (id < 0) throw InvalidInput(fmt::format("cannot decode the negative token id {}", id));
    plain.push_back(static_cast<std::uint32_t>(id));
  }
  HfBytes out{};
  HfBytes error{};
  const HfTokenizer* const tokenizer = parts_->tokenizer.get();
  if (hf_tokenizer_decode(tokenizer, plain.data(), plain.size(), skip_special_tokens, &out, &error) != 0) {
    throw InvalidInput(text::excerpt(text::take(error)));
  }
  return text::take(out);
}

std::optional<std::int32_t> Tokenizer::token_id(std::string_view token) const {
  std::int64_t id = -1;
  HfBytes error{};
  if (hf_tokenizer_token_id(parts_->tokenizer.get(), token.data(), token.size(), &id, &error) != 0) {
    throw InvalidInput(text::excerpt(text::take(error)));
  }
  if (id < 0 || id > std::numeric_limits<std::int32_t>::max()) return std::nullopt;
  return static_cast<std::int32_t>(id);
}

const std::string& Tokenizer::eos_token() const { return parts_->eos_token; }

bool Tokenizer::has_chat_template() const { return parts_->templates.plain != nullptr; }

std::string Tokenizer::render_chat(const Json& messages, bool add_generation_prompt, const Json& extra) const {
  Json variables = parts_->special_tokens;
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  if (extra.is_object()) variables.update(extra);
  variables["messages"] = text::template_messages(messages);
  variables["add_generation_prompt"] = add_generation_prompt;
  const auto& templates = parts_->templates;
  const bool for_tools = !variables["tools"].is_null() && templates.with_tools != nullptr;
  const auto& chosen = for_tools ? templates.with_tools : templates.plain;
  if (chosen == nullptr) {
    throw InvalidInput(
        fmt::format("{}: no chat template; add chat_template.jinja, or use task rows with \"text\" or \"prompt\"",
                    parts_->folder.string()));
  }
  return chosen->render(variables);
}

std::string Tokenizer::render_chat(const Json& messages, bool add_generation_prompt) const {
  return render_chat(messages, add_generation_prompt, Json::object());
}

}  // namespace moetrim
