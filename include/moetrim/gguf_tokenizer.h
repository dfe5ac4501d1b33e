// The tokenizer of a Hugging Face checkpoint as the metadata that llama.cpp reads: byte-level BPE and SentencePiece's BPE,
// from tokenizer.json and the small files around it.
//
// llama.cpp does not read the regular expressions of a tokenizer.json. It knows pre-tokenizers by name ("qwen2"), and splits
// text by what it has built in under that name. The name is found here by the shape of the tokenizer: the steps of its
// pre-tokenizer, with their expressions, and whether it takes words that are tokens whole. A shape that llama.cpp has no
// name for is refused.
//
// Source: llama.cpp release v0.5.0 (src/llama-vocab.cpp; the metadata as its converter writes it), and what transformers and
// the tokenizers library make of the same files. See docs/gguf.md.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/checkpoint.h"
#include "moetrim/gguf_file.h"

namespace moetrim {

/// A pre-tokenizer of llama.cpp, and the tokenizers that it splits like.
struct GgufPretokenizer {
  std::string_view name;                ///< tokenizer.ggml.pre
  bool whole_words;                     ///< whether a word that is a token is taken whole: `ignore_merges` of tokenizer.json
  std::vector<std::string_view> steps;  ///< "split REGEX", "digits", "bytes" or "words and bytes", in their order
  std::string_view models;              ///< published models that have it
  std::string_view limit;               ///< where llama.cpp splits differently all the same; empty where it does not
};
std::span<const GgufPretokenizer> gguf_pretokenizers();

struct GgufTokenizer {
  GgufMetadata keys;               ///< tokenizer.*, in the order in which llama.cpp's converter writes them
  std::vector<std::string> notes;  ///< what llama.cpp does otherwise than the tokenizer, one sentence each
};

/// @param vocabulary    rows of the embedding; tokens that the tokenizer does not have are filled in as unused ones
/// @param pretokenizer  llama.cpp's name where the shape has none (`export --pretokenizer NAME`); empty: by the shape
/// @throws InvalidInput naming the file and the field, also for a tokenizer that llama.cpp cannot have, with what to do;
///         UsageError for a name that llama.cpp does not have.
GgufTokenizer gguf_tokenizer(const Checkpoint& checkpoint, std::int64_t vocabulary, std::string_view pretokenizer = {});

}  // namespace moetrim
