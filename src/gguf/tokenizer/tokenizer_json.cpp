// Reads tokenizer.json. The two lists that make it large are taken out while it is parsed.

#include "tokenizer_json.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/posix_file.h"
#include "checkpoint/quote.h"
#include "moetrim/error.h"

namespace moetrim::gguf_detail {
namespace {

using Json = nlohmann::ordered_json;
using Event = Json::parse_event_t;
using checkpoint_detail::in_quotes;

// The largest published file is some 35 MiB.
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{256} << 20;
constexpr int kMaxDepth = 100;

/// Called for everything that is parsed; what it returns false for is not kept.
class Collector {
 public:
  Collector(TokenizerJson& out, std::int64_t vocabulary) : out_(out), vocabulary_(vocabulary) {}

  bool operator()(int depth, Event event, Json& value) {
    if (depth > kMaxDepth) fail(fmt::format("the JSON nests deeper than {} levels", kMaxDepth));
    switch (event) {
      case Event::object_start:
        check_lists(depth, "an object");
        keys_.resize(static_cast<std::size_t>(depth));
        keys_.emplace_back();
        return true;
      case Event::array_start:
        if (depth != 3 || !inside("merges", depth)) check_lists(depth, "an array");
        return true;
      case Event::key:
        return take_key(depth, value.get_ref<std::string&>());
      case Event::value:
        return take_value(depth, value);
      case Event::array_end:
        return take_pair(depth);
      default:
        return true;
    }
  }

 private:
  struct Keys {
    std::string last;
    std::unordered_set<std::string> seen;
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw InvalidInput(fmt::format("{}: {}", out_.file.string(), what));
  }

  bool inside(std::string_view list, int depth) const {
    return depth > 2 && keys_.size() > 1 && keys_[0].last == "model" && keys_[1].last == list;
  }

  /// model.vocab maps tokens to numbers, and model.merges is an array of strings or of pairs.
  void check_lists(int depth, const char* found) const {
    if (inside("vocab", depth) || inside("merges", depth)) {
      fail(fmt::format("model.{}: {} where a {} should be; only BPE tokenizers can be written as GGUF", keys_[1].last, found,
                       keys_[1].last == "vocab" ? "whole number" : "pair of strings"));
    }
  }

  /// Tokens are kept apart, and checked for repeats with their ids.
  bool take_key(int depth, std::string& key) {
    if (inside("vocab", depth)) {
      piece_ = std::move(key);
      return false;
    }
    Keys& level = keys_[static_cast<std::size_t>(depth) - 1];
    keys_.resize(static_cast<std::size_t>(depth));
    if (!level.seen.insert(key).second) fail(fmt::format("the key {} appears twice in one object", in_quotes(key)));
    level.last = key;
    return true;
  }

  bool take_value(int depth, Json& value) {
    if (inside("vocab", depth)) {
      add_piece(value);
      return false;
    }
    if (!inside("merges", depth)) return true;
    if (!value.is_string()) {
      fail(fmt::format("model.merges[{}]: expected a string or a pair of strings", out_.merges.size()));
    }
    if (depth == 3) {
      out_.merges.push_back(std::move(value.get_ref<std::string&>()));
      const std::string& merge = out_.merges.back();
      if (std::ranges::count(merge, ' ') != 1 || merge.front() == ' ' || merge.back() == ' ') {
        fail(fmt::format("model.merges[{}]: {} is not two tokens with a space between them", out_.merges.size() - 1,
                         in_quotes(merge)));
      }
    } else {
      pair_.push_back(std::move(value.get_ref<std::string&>()));
    }
    return false;
  }

  /// The end of an array: of a pair among the merges, which came as [left, right].
  bool take_pair(int depth) {
    if (!inside("merges", depth) || depth != 3) return true;
    const std::size_t index = out_.merges.size();
    if (pair_.size() != 2) fail(fmt::format("model.merges[{}]: expected two strings, got {}", index, pair_.size()));
    for (const std::string& part : pair_) {
      if (part.find(' ') != part.npos) {
        fail(fmt::format("model.merges[{}]: a space in {}, which GGUF cannot write", index, in_quotes(part)));
      }
    }
    out_.merges.push_back(pair_[0] + " " + pair_[1]);
    pair_.clear();
    return false;
  }

  void add_piece(const Json& value) {
    const bool fits = value.is_number_unsigned() && value.get<std::uint64_t>() < static_cast<std::uint64_t>(vocabulary_);
    if (!fits) {
      fail(fmt::format("model.vocab: the token {} has the id {}; the model's embedding has {} rows", in_quotes(piece_),
                       value.dump(), vocabulary_));
    }
    if (piece_.empty()) fail("model.vocab: an empty token");
    std::string& place = out_.pieces[value.get<std::size_t>()];
    if (!place.empty()) {
      fail(fmt::format("model.vocab: the tokens {} and {} have the same id, {}", in_quotes(place), in_quotes(piece_),
                       value.dump()));
    }
    place = std::move(piece_);
  }

  TokenizerJson& out_;
  std::int64_t vocabulary_;
  std::vector<Keys> keys_;  ///< one for each open object on the way, outermost first
  std::string piece_;
  std::vector<std::string> pair_;
};

bool flag(const Json& token, const char* name) {
  const auto found = token.find(name);
  return found != token.end() && found->is_boolean() && found->get<bool>();
}

/// A token written as {"content": "...", flags} or as its text alone; nothing when it is neither.
std::optional<AddedToken> added_token(const Json& token, bool special) {
  AddedToken added;
  added.special = special;
  if (token.is_string()) {
    added.text = token.get<std::string>();
  } else if (token.is_object() && token.contains("content") && token["content"].is_string()) {
    added.text = token["content"].get<std::string>();
    added.special |= flag(token, "special");
    added.strips = flag(token, "lstrip") || flag(token, "rstrip") || flag(token, "single_word");
  } else {
    return std::nullopt;
  }
  if (added.text.empty()) return std::nullopt;
  return added;
}

/// Tokens that tokenizer_config.json lists, in the order in which transformers adds those that are missing.
std::vector<AddedToken> listed_tokens(const Json& config) {
  std::vector<AddedToken> tokens;
  const auto add = [&](const Json& token, bool special) {
    if (auto added = added_token(token, special)) tokens.push_back(std::move(*added));
  };
  if (const auto decoder = config.find("added_tokens_decoder"); decoder != config.end() && decoder->is_object()) {
    std::map<std::pair<std::size_t, std::string>, const Json*> by_id;  // shorter numbers are smaller
    for (const auto& [id, token] : decoder->items()) by_id[{id.size(), id}] = &token;
    for (const auto& [id, token] : by_id) add(*token, false);
  }
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    if (const auto found = config.find(name); found != config.end()) add(*found, true);
  }
  for (const char* list : {"additional_special_tokens", "extra_special_tokens"}) {
    const auto found = config.find(list);
    if (found == config.end() || !found->is_array()) continue;
    for (const Json& token : *found) add(token, true);
  }
  return tokens;
}

/// Gives added tokens their ids as the tokenizers library does: a token of the vocabulary keeps its own, another gets the
/// one behind all so far. An id in the file is a statement that this comes out.
class AddedTokens {
 public:
  AddedTokens(TokenizerJson& tokenizer, std::int64_t vocabulary) : tokenizer_(tokenizer), vocabulary_(vocabulary) {
    for (std::size_t id = 0; id < tokenizer.pieces.size(); ++id) {
      if (tokenizer.pieces[id].empty()) continue;
      if (!ids_.emplace(tokenizer.pieces[id], static_cast<std::uint32_t>(id)).second) {
        fail(fmt::format("model.vocab: the token {} appears twice", in_quotes(tokenizer.pieces[id])));
      }
    }
    next_ = ids_.size();
  }

  bool has(const std::string& text) const { return texts_.contains(text); }

  void add(AddedToken token, const Json* stated) {
    if (!texts_.insert(token.text).second) fail(fmt::format("added_tokens: {} appears twice", in_quotes(token.text)));
    const auto known = ids_.find(token.text);
    const std::uint64_t id = known != ids_.end() ? known->second : next_;
    next_ = std::max(next_, id + 1);  // also behind a known one
    if (stated != nullptr && (!stated->is_number_unsigned() || stated->get<std::uint64_t>() != id)) {
      fail(fmt::format("added_tokens: the id of {} is {}, but the tokenizers library gives it {}", in_quotes(token.text),
                       stated->dump(), id));
    }
    if (id >= static_cast<std::uint64_t>(vocabulary_)) {
      fail(fmt::format("the added token {} has the id {}; the model's embedding has {} rows", in_quotes(token.text), id,
                       vocabulary_));
    }
    if (known == ids_.end() && !tokenizer_.pieces[id].empty()) {
      fail(fmt::format("the added token {} and the token {} have the same id, {}", in_quotes(token.text),
                       in_quotes(tokenizer_.pieces[id]), id));
    }
    token.id = static_cast<std::uint32_t>(id);
    tokenizer_.added.push_back(std::move(token));
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InvalidInput(fmt::format("{}: {}", tokenizer_.file.string(), what));
  }

  TokenizerJson& tokenizer_;
  std::int64_t vocabulary_;
  std::unordered_map<std::string_view, std::uint32_t> ids_;  ///< of model.vocab
  std::unordered_set<std::string> texts_;
  std::uint64_t next_ = 0;
};

void add_tokens(TokenizerJson& tokenizer, const Json& config, std::int64_t vocabulary) {
  AddedTokens added(tokenizer, vocabulary);
  if (const auto list = tokenizer.rest.find("added_tokens"); list != tokenizer.rest.end() && list->is_array()) {
    for (const Json& entry : *list) {
      auto token = added_token(entry, false);
      if (!token || !entry.is_object() || !entry.contains("id")) {
        throw InvalidInput(fmt::format("{}: added_tokens[{}]: expected an object with \"id\" and \"content\"",
                                       tokenizer.file.string(), tokenizer.added.size()));
      }
      added.add(std::move(*token), &entry["id"]);
    }
  }
  for (AddedToken& token : listed_tokens(config)) {
    if (!added.has(token.text)) added.add(std::move(token), nullptr);
  }
}

/// What no tokenizer that llama.cpp knows has.
void check_model(const TokenizerJson& tokenizer) {
  const auto fail = [&](const std::string& what) {
    throw InvalidInput(fmt::format("{}: {}; llama.cpp can have no such tokenizer: leave it out (--no-tokenizer)",
                                   tokenizer.file.string(), what));
  };
  const bool there = tokenizer.rest.is_object() && tokenizer.rest.contains("model") && tokenizer.model().is_object();
  if (!there) fail("no object \"model\"");
  const Json& model = tokenizer.model();
  // Old files of GPT-2's kind do not say their type.
  const auto type = model.find("type");
  if (type != model.end() && *type != "BPE") fail(fmt::format("model.type is {}, not \"BPE\"", type->dump()));
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix", "dropout"}) {
    const auto found = model.find(name);
    if (found == model.end() || found->is_null() || *found == "" || *found == 0.0) continue;
    fail(fmt::format("model.{} is {}", name, found->dump()));
  }
  if (tokenizer.merges.empty()) fail("model.merges is empty");
}

}  // namespace

const AddedToken* TokenizerJson::find_added(std::string_view text) const {
  const auto found = std::ranges::find(added, text, &AddedToken::text);
  return found == added.end() ? nullptr : &*found;
}

TokenizerJson read_tokenizer_json(const std::filesystem::path& folder, const Json& config,
                                  std::int64_t vocabulary) {
  TokenizerJson tokenizer;
  tokenizer.file = folder / "tokenizer.json";
  if (!std::filesystem::exists(tokenizer.file)) {
    throw InvalidInput(fmt::format("{}: there is no such file; make it with transformers' "
                                   "AutoTokenizer.from_pretrained(...).save_pretrained(...), or leave the tokenizer out "
                                   "(--no-tokenizer)",
                                   tokenizer.file.string()));
  }
  tokenizer.pieces.resize(static_cast<std::size_t>(vocabulary));
  {
    const std::string text = checkpoint_detail::read_text(tokenizer.file, kMaxFileBytes);
    Collector collector(tokenizer, vocabulary);
    try {
      tokenizer.rest = Json::parse(text, std::ref(collector));
    } catch (const Json::exception& error) {
      throw InvalidInput(
          fmt::format("{}: not valid JSON: {}", tokenizer.file.string(), checkpoint_detail::ascii_only(error.what())));
    }
  }
  check_model(tokenizer);
  add_tokens(tokenizer, config, vocabulary);
  return tokenizer;
}

}  // namespace moetrim::gguf_detail
