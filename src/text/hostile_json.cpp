// Checks and parses JSON text that may be damaged or malicious.

#include "text/hostile_json.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::text {
namespace {

constexpr std::size_t kExcerptBytes = 160;

bool is_continuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

/// Length of the UTF-8 character at the start of `text`, or 0 when there is none.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : static_cast<unsigned char>(0);
  };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return is_continuation(byte(1)) ? 2 : 0;
  if ((lead & 0xF0) == 0xE0) {
    const bool overlong = lead == 0xE0 && byte(1) < 0xA0;
    const bool surrogate = lead == 0xED && byte(1) > 0x9F;
    return is_continuation(byte(1)) && is_continuation(byte(2)) && !overlong && !surrogate ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const bool overlong = lead == 0xF0 && byte(1) < 0x90;
    const bool too_large = lead == 0xF4 && byte(1) > 0x8F;
    const bool whole = is_continuation(byte(1)) && is_continuation(byte(2)) && is_continuation(byte(3));
    return whole && !overlong && !too_large ? 4 : 0;
  }
  return 0;
}

void check_depth(std::string_view json) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t at = 0; at < json.size(); ++at) {
    const char c = json[at];
    if (in_string) {
      if (c == '\\') ++at;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxJsonDepth) {
        throw InvalidInput(fmt::format("JSON nested more than {} levels deep; flatten it", kMaxJsonDepth));
      }
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
}

}  // namespace

void check_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_length(text.substr(at, 4));
    if (length == 0) {
      throw InvalidInput(fmt::format("not UTF-8 at byte {} (0x{:02x}); save the file as UTF-8", at,
                                     static_cast<std::uint8_t>(text[at])));
    }
    at += length;
  }
}

nlohmann::ordered_json parse_json(std::string_view json) {
  check_utf8(json);
  check_depth(json);
  try {
    return nlohmann::ordered_json::parse(json);
  } catch (const nlohmann::json::exception& error) {
    // The library starts each message with its own identifier in brackets.
    std::string_view message = error.what();
    const auto identifier_end = message.find("] ");
    if (identifier_end != std::string_view::npos) message.remove_prefix(identifier_end + 2);
    throw InvalidInput(fmt::format("not valid JSON: {}", excerpt(message)));
  }
}

std::string excerpt(std::string_view text) {
  std::size_t length = std::min(text.size(), kExcerptBytes);
  while (length < text.size() && length > 0 && is_continuation(static_cast<unsigned char>(text[length]))) {
    --length;
  }
  std::string line(text.substr(0, length));
  std::replace_if(
      line.begin(), line.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }, ' ');
  return length < text.size() ? line + "..." : line;
}

}  // namespace moetrim::text
