// JSON text from a file nobody vouches for, checked before it is parsed.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace moetrim::text {

/// Deeper nesting is refused: copies and dumps of a document recurse.
inline constexpr int kMaxJsonDepth = 100;

/// @throws InvalidInput naming the byte.
void check_utf8(std::string_view text);

/// Parses one JSON document.
/// @throws InvalidInput  not UTF-8 (with the byte), nested too deeply, or not JSON.
nlohmann::ordered_json parse_json(std::string_view json);

/// `text` as one short printable line, for use in a message.
std::string excerpt(std::string_view text);

}  // namespace moetrim::text
