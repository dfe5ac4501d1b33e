// Rotary embedding whose scaling is a tensor: by what every frequency is divided.
#pragma once

#include "gguf/export/mapping.h"

namespace moetrim::gguf_list {

/// Llama-3's scaling as the tensor rope_freqs.weight; nothing for other kinds.
void add_llama3_factors(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys);
/// LongRoPE as two tensors, of which llama.cpp takes the first up to the original context length; nothing for other kinds.
void add_longrope_factors(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys);

}  // namespace moetrim::gguf_list
