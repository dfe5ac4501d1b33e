// A tokenizer.json as llama.cpp needs it: the tokens by id, the merges, and the rest of the file as a tree.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace moetrim::gguf_detail {

/// A token that is found in a text before anything else happens to it.
struct AddedToken {
  std::string text;
  std::uint32_t id = 0;
  bool special = false;
  bool strips = false;  ///< takes the white space beside it, or stands only as a word of its own
};

struct TokenizerJson {
  std::filesystem::path file;
  nlohmann::ordered_json rest;          ///< the file without the two long lists below
  std::vector<std::string> pieces;      ///< by id; empty where model.vocab has no token
  std::vector<std::string> merges;      ///< "left right", first merged first
  std::vector<AddedToken> added;        ///< tokens of `added_tokens`, and those that only tokenizer_config.json lists

  /// "model", which is there.
  const nlohmann::ordered_json& model() const { return rest["model"]; }
  const AddedToken* find_added(std::string_view text) const;
};

/// Reads it in one pass, in memory of a few times its size.
/// @param config      tokenizer_config.json
/// @param vocabulary  every id must be below it
/// @throws InvalidInput on anything but a BPE tokenizer with ids in that range, each once, and on a token with two ids.
TokenizerJson read_tokenizer_json(const std::filesystem::path& folder, const nlohmann::ordered_json& config,
                                  std::int64_t vocabulary);

}  // namespace moetrim::gguf_detail
