// Which tokens begin, end and fill a text, as the files around a tokenizer.json say it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/checkpoint.h"
#include "tokenizer_json.h"

namespace moetrim::gguf_detail {

struct SpecialTokens {
  /// Role ("bos", "eos", "unk", "sep", "pad", "mask", "eot", "eom") and id, in this order.
  std::vector<std::pair<std::string_view, std::uint32_t>> ids;
  bool add_bos = false;  ///< what the post-processor of tokenizer.json puts around a text
  bool add_eos = false;
  std::vector<std::string> notes;
};

/// @param config  tokenizer_config.json, with what special_tokens_map.json adds to it
/// @throws InvalidInput for an id that the vocabulary does not have.
SpecialTokens special_tokens(const Checkpoint& checkpoint, const TokenizerJson& tokenizer,
                             const nlohmann::ordered_json& config, std::int64_t vocabulary);

}  // namespace moetrim::gguf_detail
