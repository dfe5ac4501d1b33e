// Puts a tokenizer's metadata together.

#include "moetrim/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_set>

#include <fmt/format.h>

#include "chat_templates.h"
#include "checkpoint/quote.h"
#include "moetrim/error.h"
#include "pretokenizer_shape.h"
#include "sentencepiece.h"
#include "special_tokens.h"
#include "tokenizer_json.h"

namespace moetrim {
namespace {

using namespace gguf_detail;
using Json = nlohmann::ordered_json;
using checkpoint_detail::in_quotes;

/// Types of tokens, as GGUF numbers them.
enum class TokenType : std::int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct Tokens {
  std::vector<std::string> texts;
  std::vector<std::int32_t> types;
};

Json read_object(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return Json::object();
  Json json = read_json_file(file);
  if (!json.is_object()) throw InvalidInput(fmt::format("{}: expected an object", file.string()));
  return json;
}

/// tokenizer_config.json, with the tokens that only special_tokens_map.json names.
Json tokenizer_config(const std::filesystem::path& folder) {
  Json config = read_object(folder / "tokenizer_config.json");
  const Json named = read_object(folder / "special_tokens_map.json");
  for (const auto& [name, token] : named.items()) {
    if (!config.contains(name)) config[name] = token;
  }
  return config;
}

/// Tokens that some models write by the special ones' pattern and do not mark as special.
bool looks_special(std::string_view text) {
  const auto framed = [&](std::string_view begin, std::string_view end) {
    return text.size() >= begin.size() + end.size() && text.starts_with(begin) && text.ends_with(end);
  };
  return text == "<pad>" || text == "<mask>" || text == "<2mass>" || text == "[@BOS@]" || framed("<|", "|>") ||
         framed("<｜", "｜>") || framed("<unused", ">");
}

bool is_byte(std::string_view text) {
  const auto hexadecimal = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f'); };
  return text.size() == 6 && text.starts_with("<0x") && hexadecimal(text[3]) && hexadecimal(text[4]) && text[5] == '>';
}

/// Text that llama.cpp looks for as it stands, which is not normalised.
std::string with_spaces(std::string_view text) {
  std::string spaced;
  while (!text.empty()) {
    const bool space = text.starts_with(kSpaceMark);
    spaced += space ? ' ' : text.front();
    text.remove_prefix(space ? kSpaceMark.size() : 1);
  }
  return spaced;
}

/// The text and type of every id. llama.cpp ends the process at two tokens of one text.
Tokens tokens_of(TokenizerJson& tokenizer, bool sentencepiece) {
  Tokens tokens{.texts = std::move(tokenizer.pieces), .types = {}};
  tokens.types.assign(tokens.texts.size(), static_cast<std::int32_t>(TokenType::normal));
  const auto set_type = [&](std::size_t id, TokenType type) { tokens.types[id] = static_cast<std::int32_t>(type); };
  for (std::size_t id = 0; sentencepiece && id < tokens.texts.size(); ++id) {
    if (is_byte(tokens.texts[id])) set_type(id, TokenType::byte);
  }
  for (const AddedToken& added : tokenizer.added) {
    const bool control = added.special || looks_special(added.text);
    tokens.texts[added.id] = control ? added.text : with_spaces(added.text);
    set_type(added.id, control ? TokenType::control : TokenType::user_defined);
  }
  const auto unknown = tokenizer.model().find("unk_token");
  for (std::size_t id = 0; id < tokens.texts.size(); ++id) {
    if (tokens.texts[id].empty()) {
      tokens.texts[id] = fmt::format("[PAD{}]", id);
      set_type(id, TokenType::unused);
    } else if (sentencepiece && unknown != tokenizer.model().end() && *unknown == tokens.texts[id]) {
      set_type(id, TokenType::unknown);
    }
  }
  std::unordered_set<std::string_view> seen;
  for (const std::string& text : tokens.texts) {
    if (!seen.insert(text).second) {
      throw InvalidInput(fmt::format("{}: two tokens would be {} in a GGUF file", tokenizer.file.string(), in_quotes(text)));
    }
  }
  return tokens;
}

std::string_view key_of_role(std::string_view role) {
  if (role == "unk") return "unknown_token_id";
  if (role == "sep") return "seperator_token_id";  // spelt so in GGUF
  if (role == "pad") return "padding_token_id";
  if (role == "bos") return "bos_token_id";
  if (role == "eos") return "eos_token_id";
  if (role == "mask") return "mask_token_id";
  return role == "eot" ? "eot_token_id" : "eom_token_id";
}

/// llama.cpp normalises no text for byte-level BPE.
void check_normalizer(const TokenizerJson& tokenizer, std::vector<std::string>& notes) {
  const auto normalizer = tokenizer.rest.find("normalizer");
  if (normalizer == tokenizer.rest.end() || normalizer->is_null()) return;
  const bool sequence = normalizer->is_object() && normalizer->contains("normalizers");
  for (const Json& step : sequence ? (*normalizer)["normalizers"] : Json::array({*normalizer})) {
    if (!step.is_object() || !step.contains("type") || step["type"] != "NFC") {
      const std::string shown = step.dump(-1, ' ', false, Json::error_handler_t::replace);
      throw InvalidInput(
          fmt::format("{}: normalizer: llama.cpp does not do {}; leave the tokenizer out (--no-tokenizer)",
                      tokenizer.file.string(), in_quotes(shown)));
    }
    notes.emplace_back("llama.cpp does not compose characters (NFC): text that has them decomposed gets other ids");
  }
}

/// tokenizer.ggml.pre of a byte-level tokenizer.
std::string pretokenizer_name(const TokenizerJson& tokenizer, std::vector<std::string>& notes) {
  const auto found = tokenizer.rest.find("pre_tokenizer");
  const auto ignore = tokenizer.model().find("ignore_merges");
  const bool whole_words = ignore != tokenizer.model().end() && *ignore == true;
  const GgufPretokenizer& row = pretokenizer_of(
      pretokenizer_steps(found == tokenizer.rest.end() ? Json() : *found, tokenizer.file), whole_words, tokenizer.file);
  if (row.whole_words != whole_words) {
    notes.push_back(fmt::format(
        "the tokenizer {} a word whole that is a token, llama.cpp's {} {}: they differ for tokens that no merges lead to",
        whole_words ? "takes" : "does not take", row.name, row.whole_words ? "does" : "does not"));
  }
  if (!row.limit.empty()) {
    notes.push_back(
        fmt::format("llama.cpp's pre-tokenizer {} is not quite the tokenizer's: {}", row.name, row.limit));
  }
  return std::string(row.name);
}

/// The model, its pre-tokenizer, and the tokens with what they need to be found.
void add_vocabulary(TokenizerJson& tokenizer, std::string_view pretokenizer, GgufTokenizer& result) {
  const bool sentencepiece = is_sentencepiece(tokenizer);
  result.keys.set("tokenizer.ggml.model", std::string(sentencepiece ? "llama" : "gpt2"));
  std::vector<float> scores;
  SpacePrefix prefix;
  if (sentencepiece && !pretokenizer.empty() && pretokenizer != "default") {
    throw UsageError(fmt::format("--pretokenizer {}: a tokenizer of SentencePiece's kind can have default alone",
                                 in_quotes(pretokenizer)));
  }
  if (sentencepiece) {
    prefix = space_prefix(tokenizer);
    std::ranges::move(prefix.notes, std::back_inserter(result.notes));
    scores = scores_of_merges(tokenizer, !pretokenizer.empty());
    result.keys.set("tokenizer.ggml.pre", std::string("default"));
  } else {
    check_normalizer(tokenizer, result.notes);
    result.keys.set("tokenizer.ggml.pre", pretokenizer.empty() ? pretokenizer_name(tokenizer, result.notes)
                                                               : std::string(known_pretokenizer(pretokenizer)));
  }
  Tokens tokens = tokens_of(tokenizer, sentencepiece);
  result.keys.set("tokenizer.ggml.tokens", GgufArray::of_texts(std::move(tokens.texts)));
  if (sentencepiece) result.keys.set("tokenizer.ggml.scores", GgufArray::of_f32(scores));
  result.keys.set("tokenizer.ggml.token_type", GgufArray::of_i32(tokens.types));
  if (sentencepiece) {
    result.keys.set("tokenizer.ggml.add_space_prefix", prefix.added);
  } else {
    result.keys.set("tokenizer.ggml.merges", GgufArray::of_texts(std::move(tokenizer.merges)));
  }
  const auto stripping = std::ranges::find(tokenizer.added, true, &AddedToken::strips);
  if (stripping != tokenizer.added.end()) {
    result.notes.push_back(
        fmt::format("llama.cpp leaves the white space beside {}, which the tokenizer takes into it, where it is",
                    in_quotes(stripping->text)));
  }
}

}  // namespace

GgufTokenizer gguf_tokenizer(const Checkpoint& checkpoint, std::int64_t vocabulary, std::string_view pretokenizer) {
  if (vocabulary <= 0 || vocabulary > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidInput(fmt::format("{}: a vocabulary of {} tokens", checkpoint.folder().string(), vocabulary));
  }
  const Json config = tokenizer_config(checkpoint.folder());
  TokenizerJson tokenizer = read_tokenizer_json(checkpoint.folder(), config, vocabulary);
  SpecialTokens special = special_tokens(checkpoint, tokenizer, config, vocabulary);
  GgufTokenizer result;
  add_vocabulary(tokenizer, pretokenizer, result);
  for (const auto& [role, id] : special.ids) result.keys.set(fmt::format("tokenizer.ggml.{}", key_of_role(role)), id);
  // Said always: what llama.cpp takes for granted depends on the pre-tokenizer's name.
  result.keys.set("tokenizer.ggml.add_bos_token", special.add_bos);
  result.keys.set("tokenizer.ggml.add_eos_token", special.add_eos);
  std::ranges::move(special.notes, std::back_inserter(result.notes));
  add_chat_templates(checkpoint.folder(), config, result.keys);
  return result;
}

}  // namespace moetrim
