// BPE tokenizers with byte tokens and spaces written as U+2581, which came from SentencePiece: llama.cpp's "llama" model.
#pragma once

#include <string>
#include <vector>

#include "tokenizer_json.h"

namespace moetrim::gguf_detail {

inline constexpr std::string_view kSpaceMark = "\u2581";

bool is_sentencepiece(const TokenizerJson& tokenizer);

struct SpacePrefix {
  bool added = false;               ///< a space stands before every stretch of text between special tokens
  std::vector<std::string> notes;
};

/// How spaces are treated.
/// @throws InvalidInput for a normalizer and a pre-tokenizer that llama.cpp's "llama" model does not work like.
SpacePrefix space_prefix(const TokenizerJson& tokenizer);

/// A score for every id, higher for what is merged first. llama.cpp merges any two neighbours that together are a token, the
/// best score first; the tokenizer merges the pairs that it lists, in their order.
/// @throws InvalidInput when the two are not the same: merges of a token lie apart, or a token could be joined from a pair
///         that is not listed. Not with `unchecked`.
std::vector<float> scores_of_merges(const TokenizerJson& tokenizer, bool unchecked);

}  // namespace moetrim::gguf_detail
