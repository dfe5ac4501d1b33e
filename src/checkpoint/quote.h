// How names and other text from a file are shown in error messages: short, on one line, without control characters.
#pragma once

#include <string>
#include <string_view>

namespace moetrim::checkpoint_detail {

/// `text` in single quotes. Control characters are escaped; long text is cut, with its length.
std::string in_quotes(std::string_view text);

/// Like in_quotes(), for text that may not be UTF-8: every byte outside ASCII is escaped too.
std::string ascii_only(std::string_view text);

/// True when `text` is valid UTF-8: no overlong form, no surrogate, nothing beyond U+10FFFF.
bool is_utf8(std::string_view text);

/// True when `text` (UTF-8) holds a control character: C0, DEL or C1.
bool has_control_character(std::string_view text);

}  // namespace moetrim::checkpoint_detail
