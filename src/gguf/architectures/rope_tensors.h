// Rotary embedding whose scaling is a tensor: by what every frequency is divided.
#pragma once

#include <cstdint>
#include <vector>

#include "gguf/export/mapping.h"

namespace moetrim::gguf_list {

/// Llama-3's scaling as the tensor rope_freqs.weight; nothing for other kinds.
void add_llama3_factors(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys);
/// LongRoPE as two tensors, of which llama.cpp takes the first up to the original context length; nothing for other kinds.
void add_longrope_factors(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys);

/// How many of the rotated pairs follow a token's time, height and width (mrope_section); in text all three are its place.
/// @param usual  where config.json does not say; empty: it must
void add_rope_sections(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys,
                       std::vector<std::int32_t> usual = {});

}  // namespace moetrim::gguf_list
