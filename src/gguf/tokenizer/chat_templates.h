// The chat templates of a checkpoint as GGUF keys, byte for byte.
#pragma once

#include <filesystem>

#include <nlohmann/json.hpp>

#include "moetrim/gguf_file.h"

namespace moetrim::gguf_detail {

/// Sets tokenizer.chat_template, tokenizer.chat_template.NAME and tokenizer.chat_templates. Files of their own win over
/// tokenizer_config.json (`config`) as a whole, as in transformers.
/// @throws InvalidInput for templates of another form, not in UTF-8, or two of one name.
void add_chat_templates(const std::filesystem::path& folder, const nlohmann::ordered_json& config, GgufMetadata& keys);

}  // namespace moetrim::gguf_detail
