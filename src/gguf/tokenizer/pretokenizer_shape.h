// The pre-tokenizer of a tokenizer.json, one line a step, by which llama.cpp's name for it is found.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/gguf_tokenizer.h"

namespace moetrim::gguf_detail {

/// The steps in GgufPretokenizer's spelling.
/// @param pretokenizer  "pre_tokenizer" of `file`
/// @throws InvalidInput naming a step that no byte-level tokenizer of llama.cpp has.
std::vector<std::string> pretokenizer_steps(const nlohmann::ordered_json& pretokenizer, const std::filesystem::path& file);

/// The row with these steps; of several the one with this flag.
/// @throws InvalidInput showing the steps when there is none.
const GgufPretokenizer& pretokenizer_of(const std::vector<std::string>& steps, bool whole_words,
                                        const std::filesystem::path& file);

/// The name, which llama.cpp must have. @throws UsageError
std::string_view known_pretokenizer(std::string_view name);

}  // namespace moetrim::gguf_detail
