// Numbers as ggml stores them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "moetrim/gguf_file.h"

namespace moetrim::gguf_detail {

/// Types that values are converted to: f32, f16 and bf16, rounded to the nearest number, ties to even; and q8_0, blocks of
/// 32 with the scale max|x| / 127, as ggml's reference quantiser computes it.
/// @param values  whole blocks
/// @param tensor  named in errors
/// @throws InvalidInput for a value that is no number, infinite, or too large for the type.
void encode(std::span<const float> values, GgmlType type, std::string_view tensor, std::vector<std::byte>& out);

}  // namespace moetrim::gguf_detail
