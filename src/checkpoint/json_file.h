// JSON text as a tree, with everything refused on which two readers could disagree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

namespace moetrim::checkpoint_detail {

/// Deeper JSON would overflow the stack of whoever walks or prints it.
inline constexpr std::size_t kMaxJsonDepth = 512;

/// @param file  for messages.
/// @throws InvalidInput on a syntax error (line and column), invalid UTF-8, a key twice in one object, or deep nesting.
nlohmann::ordered_json parse_json(const std::filesystem::path& file, const std::string& text, bool comments);

}  // namespace moetrim::checkpoint_detail
