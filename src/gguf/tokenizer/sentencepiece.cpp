// Turns the merges of a tokenizer.json back into the scores of the SentencePiece model that they were made from.

#include "sentencepiece.h"

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <unordered_set>

#include <fmt/format.h>

#include "checkpoint/quote.h"
#include "moetrim/error.h"

namespace moetrim::gguf_detail {
namespace {

using Json = nlohmann::ordered_json;
using checkpoint_detail::in_quotes;

[[noreturn]] void refuse(const TokenizerJson& tokenizer, const std::string& what) {
  throw InvalidInput(fmt::format("{}: {}; llama.cpp's \"llama\" tokenizer would give other ids: leave the tokenizer out "
                                 "(--no-tokenizer), or take it as it is (--pretokenizer default)",
                                 tokenizer.file.string(), what));
}

const Json& member(const Json& object, const char* name) {
  static const Json null;
  const auto found = object.is_object() ? object.find(name) : object.end();
  return found == object.end() ? null : *found;
}

bool is_type(const Json& step, std::string_view type) { return member(step, "type") == type; }

/// The steps of a normalizer or pre-tokenizer, which may be one or a sequence.
std::vector<Json> steps_of(const Json& step, const char* list) {
  if (step.is_null()) return {};
  if (!is_type(step, "Sequence")) return {step};
  const Json& steps = member(step, list);
  return steps.is_array() ? std::vector<Json>(steps.begin(), steps.end()) : std::vector<Json>{step};
}

bool replaces_spaces(const Json& step) {
  return is_type(step, "Replace") && member(member(step, "pattern"), "String") == " " &&
         member(step, "content") == kSpaceMark;
}

bool splits_at_spaces_left(const Json& step) {
  return is_type(step, "Split") && member(member(step, "pattern"), "String") == " ";  // of which the normalizer leaves none
}

SpacePrefix metaspace_prefix(const TokenizerJson& tokenizer, const Json& step) {
  const Json& split = member(step, "split");
  if (member(step, "replacement") != kSpaceMark || !split.is_boolean() || split.get<bool>()) {
    refuse(tokenizer, "pre_tokenizer: Metaspace splits at spaces");
  }
  const Json& scheme = member(step, "prepend_scheme");
  if (scheme == "never") return {};
  if (scheme == "always") return {.added = true, .notes = {}};
  if (scheme != "first") refuse(tokenizer, fmt::format("pre_tokenizer: prepend_scheme is {}", scheme.dump()));
  return {.added = true, .notes = {"llama.cpp puts a space before text that follows a special token, the tokenizer only at "
                                   "the beginning"}};
}

using Ids = std::unordered_map<std::string_view, std::uint32_t>;

Ids ids_of(const TokenizerJson& tokenizer) {
  Ids ids;
  for (std::size_t id = 0; id < tokenizer.pieces.size(); ++id) {
    if (!tokenizer.pieces[id].empty()) ids.emplace(tokenizer.pieces[id], static_cast<std::uint32_t>(id));
  }
  return ids;
}

/// Every way to join a token from two is a merge.
void check_complete(const TokenizerJson& tokenizer, const Ids& ids) {
  const std::unordered_set<std::string_view> merges(tokenizer.merges.begin(), tokenizer.merges.end());
  std::unordered_set<std::string_view> added;
  for (const AddedToken& token : tokenizer.added) added.insert(token.text);
  std::string pair;
  for (const std::string& piece : tokenizer.pieces) {
    if (piece.empty() || added.contains(piece)) continue;
    for (std::size_t cut = 1; cut < piece.size(); ++cut) {
      const std::string_view left = std::string_view(piece).substr(0, cut);
      const std::string_view right = std::string_view(piece).substr(cut);
      if (!ids.contains(left) || !ids.contains(right)) continue;
      pair.assign(left).append(" ").append(right);
      if (merges.contains(pair)) continue;
      refuse(tokenizer, fmt::format("model.merges: {} is a token, but {} is not among the merges", in_quotes(piece),
                                    in_quotes(pair)));
    }
  }
}

/// Of equal, lowest score in SentencePiece's models: their merges lie among one another.
bool is_run_of_spaces(std::string_view text) {
  while (text.starts_with(kSpaceMark)) text.remove_prefix(kSpaceMark.size());
  return text.empty();
}

}  // namespace

bool is_sentencepiece(const TokenizerJson& tokenizer) { return member(tokenizer.model(), "byte_fallback") == true; }

SpacePrefix space_prefix(const TokenizerJson& tokenizer) {
  const std::vector<Json> normalizer = steps_of(member(tokenizer.rest, "normalizer"), "normalizers");
  const std::vector<Json> pretokenizer = steps_of(member(tokenizer.rest, "pre_tokenizer"), "pretokenizers");
  if (normalizer.empty() && pretokenizer.size() == 1 && is_type(pretokenizer[0], "Metaspace")) {
    return metaspace_prefix(tokenizer, pretokenizer[0]);
  }
  const bool nothing_more = pretokenizer.empty() || (pretokenizer.size() == 1 && splits_at_spaces_left(pretokenizer[0]));
  if (nothing_more && normalizer.size() == 1 && replaces_spaces(normalizer[0])) return {};
  if (nothing_more && normalizer.size() == 2 && is_type(normalizer[0], "Prepend") &&
      member(normalizer[0], "prepend") == kSpaceMark && replaces_spaces(normalizer[1])) {
    return {.added = true, .notes = {}};
  }
  refuse(tokenizer, "normalizer and pre_tokenizer are not those of a SentencePiece model");
}

std::vector<float> scores_of_merges(const TokenizerJson& tokenizer, bool unchecked) {
  const Ids ids = ids_of(tokenizer);
  if (!unchecked) check_complete(tokenizer, ids);
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  std::vector<float> scores(tokenizer.pieces.size(), kNone);
  std::uint32_t last = std::numeric_limits<std::uint32_t>::max();
  bool spaces = false;  // whether the merge before made a run of spaces
  std::size_t order = 0;
  for (const std::string& merge : tokenizer.merges) {
    std::string joined = merge;
    joined.erase(joined.find(' '), 1);
    const auto token = ids.find(joined);
    if (token == ids.end()) refuse(tokenizer, fmt::format("model.merges: {} makes no token", in_quotes(merge)));
    const bool follows = token->second == last || (spaces && is_run_of_spaces(joined));
    last = token->second;
    spaces = is_run_of_spaces(joined);
    if (scores[last] != kNone && !follows && !unchecked) {
      refuse(tokenizer, fmt::format("model.merges: the merges that make {} do not follow one another", in_quotes(joined)));
    }
    if (scores[last] == kNone) scores[last] = -static_cast<float>(follows ? order : ++order);
  }
  for (float& score : scores) score = std::max(score, -static_cast<float>(order + 1));
  return scores;
}

}  // namespace moetrim::gguf_detail
