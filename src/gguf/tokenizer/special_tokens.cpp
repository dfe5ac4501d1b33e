// Finds special tokens: tokenizer_config.json by text, then config.json by id; the ends of a generation from
// generation_config.json; what is put around a text from the post-processor.

#include "special_tokens.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/quote.h"
#include "moetrim/error.h"

namespace moetrim::gguf_detail {
namespace {

using Json = nlohmann::ordered_json;
using checkpoint_detail::in_quotes;

constexpr std::array<std::string_view, 6> kRoles{"bos", "eos", "unk", "sep", "pad", "mask"};

/// Tokens that llama.cpp ends a generation at by their text, whatever the metadata says.
constexpr std::array<std::string_view, 22> kKnownEnds{
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["};

class Finder {
 public:
  Finder(const Checkpoint& checkpoint, const TokenizerJson& tokenizer, const Json& config, std::int64_t vocabulary)
      : checkpoint_(checkpoint), tokenizer_(tokenizer), config_(config), vocabulary_(vocabulary) {}

  SpecialTokens find() {
    for (const std::string_view role : kRoles) {
      if (const auto id = named(role)) set(role, *id);
    }
    read_post_processor();
    read_ends();
    std::ranges::stable_sort(found_.ids, {}, [](const auto& entry) {
      const auto role = std::ranges::find(kRoles, entry.first);
      return role - kRoles.begin();
    });
    return std::move(found_);
  }

 private:
  const std::uint32_t* id_of(std::string_view role) const {
    const auto entry = std::ranges::find(found_.ids, role, [](const auto& item) { return item.first; });
    return entry == found_.ids.end() ? nullptr : &entry->second;
  }

  void set(std::string_view role, std::uint32_t id) { found_.ids.emplace_back(role, id); }

  std::string text_of(std::uint32_t id) const {
    const auto added = std::ranges::find(tokenizer_.added, id, &AddedToken::id);
    return added != tokenizer_.added.end() ? added->text : tokenizer_.pieces[id];
  }

  std::optional<std::uint32_t> named(std::string_view role) const {
    const auto token = config_.find(fmt::format("{}_token", role));
    if (token != config_.end()) {
      const Json& text = token->is_object() && token->contains("content") ? (*token)["content"] : *token;
      const AddedToken* added = text.is_string() ? tokenizer_.find_added(text.get_ref<const std::string&>()) : nullptr;
      if (added != nullptr) return added->id;
    }
    const std::string key = fmt::format("{}_token_id", role);
    const Json& config = checkpoint_.config();
    if (const auto id = config.find(key); id != config.end() && !id->is_null()) return first_id(*id, "config.json", key);
    const auto text = config.find("text_config");
    if (text == config.end() || !text->is_object() || !text->contains(key)) return std::nullopt;
    return first_id((*text)[key], "config.json", key);
  }

  std::optional<std::uint32_t> first_id(const Json& value, const char* file, const std::string& key) const {
    const std::vector<std::uint32_t> all = ids(value, file, key);
    return all.empty() ? std::nullopt : std::optional(all.front());
  }

  /// One id or several; a negative one stands for none.
  std::vector<std::uint32_t> ids(const Json& value, const char* file, const std::string& key) const {
    std::vector<std::uint32_t> result;
    for (const Json& id : value.is_array() ? value : Json::array({value})) {
      if (id.is_null() || (id.is_number_integer() && !id.is_number_unsigned())) continue;
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocabulary_)) {
        throw InvalidInput(fmt::format("{}: {}: {} is no token of the vocabulary of {}",
                                       (checkpoint_.folder() / file).string(), key, id.dump(), vocabulary_));
      }
      result.push_back(id.get<std::uint32_t>());
    }
    return result;
  }

  /// The special tokens that a template puts before and behind the text.
  void read_post_processor() {
    const auto processor = tokenizer_.rest.find("post_processor");
    if (processor == tokenizer_.rest.end() || !processor->is_object()) return note_unread_flags();
    const auto list = processor->find("processors");
    for (const Json& step : list != processor->end() && list->is_array() ? *list : Json::array({*processor})) {
      const Json type = step.is_object() && step.contains("type") ? step["type"] : Json();
      if (type == "TemplateProcessing") {
        read_template(step);
      } else if (type != "ByteLevel") {
        note(fmt::format("llama.cpp does not do what the post-processor {} does", in_quotes(type.dump())));
      }
    }
    note_unread_flags();
  }

  void read_template(const Json& step) {
    std::vector<std::string> before;
    std::vector<std::string> behind;
    bool inside = false;
    const auto single = step.find("single");
    if (single == step.end() || !single->is_array()) return;
    for (const Json& part : *single) {
      if (!part.is_object()) continue;
      inside |= part.contains("Sequence");
      const auto token = part.find("SpecialToken");
      if (token == part.end() || !token->is_object() || !token->contains("id") || !(*token)["id"].is_string()) continue;
      (inside ? behind : before).push_back((*token)["id"].get<std::string>());
    }
    found_.add_bos = adds(before, "bos", "before");
    found_.add_eos = adds(behind, "eos", "behind");
  }

  /// Whether llama.cpp puts the same there: it can put its one token of that role.
  bool adds(const std::vector<std::string>& tokens, std::string_view role, const char* where) {
    if (tokens.empty()) return false;
    const AddedToken* token = tokens.size() == 1 ? tokenizer_.find_added(tokens.front()) : nullptr;
    const std::uint32_t* id = id_of(role);
    if (token != nullptr && id == nullptr) set(role, token->id);
    if (token != nullptr && (id == nullptr || *id == token->id)) return true;
    note(fmt::format("the tokenizer puts {} {} a text, which llama.cpp cannot; a chat template that does is not concerned",
                     in_quotes(fmt::format("{}", fmt::join(tokens, ""))), where));
    return false;
  }

  /// transformers reads these two beside no tokenizer.json, llama.cpp's converter always.
  void note_unread_flags() {
    const std::pair<const char*, bool> done[] = {{"add_bos_token", found_.add_bos}, {"add_eos_token", found_.add_eos}};
    for (const auto& [name, adds] : done) {
      const auto stated = config_.find(name);
      if (stated == config_.end() || !stated->is_boolean() || stated->get<bool>() == adds) continue;
      note(fmt::format("tokenizer_config.json says {} {}, tokenizer.json's post-processor the opposite, which holds, as in "
                       "transformers",
                       name, stated->get<bool>()));
    }
  }

  /// Further tokens that end a generation, for which llama.cpp has two more roles.
  void read_ends() {
    const Json& config = checkpoint_.config();
    if (std::filesystem::exists(checkpoint_.folder() / "generation_config.json")) {
      add_ends(read_json_file(checkpoint_.folder() / "generation_config.json"), "generation_config.json");
    }
    add_ends(config, "config.json");
    if (const auto text = config.find("text_config"); text != config.end()) add_ends(*text, "config.json");
    if (id_of("eos") == nullptr) note("no file says which token ends a text: llama.cpp takes one of its own choice");
  }

  void add_ends(const Json& holder, const char* file) {
    if (!holder.is_object() || !holder.contains("eos_token_id")) return;
    for (const std::uint32_t id : ids(holder["eos_token_id"], file, "eos_token_id")) {
      const auto is_this = [&](const auto& item) { return is_end(item.first) && item.second == id; };
      const bool named = std::ranges::any_of(found_.ids, is_this);
      const bool known = std::ranges::find(kKnownEnds, text_of(id)) != kKnownEnds.end();
      if (named || (known && id_of("eos") != nullptr)) continue;
      if (const auto role = free_end()) {
        set(*role, id);
      } else {
        note(fmt::format("llama.cpp will not stop at {}, which ends a generation", in_quotes(text_of(id))));
      }
    }
  }

  std::optional<std::string_view> free_end() const {
    for (const std::string_view role : {"eos", "eot", "eom"}) {
      if (id_of(role) == nullptr) return role;
    }
    return std::nullopt;
  }

  static bool is_end(std::string_view role) { return role == "eos" || role == "eot" || role == "eom"; }

  void note(std::string text) { found_.notes.push_back(std::move(text)); }

  const Checkpoint& checkpoint_;
  const TokenizerJson& tokenizer_;
  const Json& config_;
  std::int64_t vocabulary_;
  SpecialTokens found_;
};

}  // namespace

SpecialTokens special_tokens(const Checkpoint& checkpoint, const TokenizerJson& tokenizer, const Json& config,
                             std::int64_t vocabulary) {
  return Finder(checkpoint, tokenizer, config, vocabulary).find();
}

}  // namespace moetrim::gguf_detail
