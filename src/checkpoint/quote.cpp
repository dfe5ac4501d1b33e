// Text from files in error messages: see quote.h.
#include "quote.h"

#include <cstddef>

#include <fmt/format.h>

namespace moetrim::checkpoint_detail {
namespace {

constexpr std::size_t kShownBytes = 160;

/// Bytes of the control character that starts at `at`, or 0 when there is none.
std::size_t control_length(std::string_view text, std::size_t at) {
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 0x20 || byte == 0x7F) return 1;
  if (byte != 0xC2 || at + 1 == text.size()) return 0;
  const auto next = static_cast<unsigned char>(text[at + 1]);
  return next >= 0x80 && next < 0xA0 ? 2 : 0;
}

bool continues_a_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

/// At most kShownBytes, never ending inside a character.
std::string_view head(std::string_view text) {
  if (text.size() <= kShownBytes) return text;
  std::size_t end = kShownBytes;
  while (end > 0 && continues_a_character(text[end])) --end;
  return text.substr(0, end);
}

std::string escaped(std::string_view text, bool keep_utf8) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text[at]);
    std::size_t hidden = control_length(text, at);
    if (hidden == 0 && byte >= 0x80 && !keep_utf8) hidden = 1;
    if (hidden == 0) out += text[at++];
    for (; hidden > 0; --hidden, ++at) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[at]));
  }
  return out;
}

}  // namespace

std::string in_quotes(std::string_view text) {
  const std::string_view shown = head(text);
  std::string out = "'" + escaped(shown, true) + "'";
  if (shown.size() < text.size()) out += fmt::format("... ({} bytes)", text.size());
  return out;
}

std::string ascii_only(std::string_view text) {
  const std::string_view shown = head(text);
  return escaped(shown, false) + (shown.size() < text.size() ? "..." : "");
}

bool is_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto first = static_cast<unsigned char>(text[at]);
    const std::size_t length =
        first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (length == 0 || length > text.size() - at) return false;
    for (std::size_t i = 1; i < length; ++i) {
      if (!continues_a_character(text[at + i])) return false;
    }
    // The second byte decides what is overlong (E0, F0), a surrogate (ED) or too large (F4).
    const auto second = static_cast<unsigned char>(length > 2 ? text[at + 1] : '\0');
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
        (first == 0xF4 && second > 0x8F)) {
      return false;
    }
    at += length;
  }
  return true;
}

bool has_control_character(std::string_view text) {
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (control_length(text, at) > 0) return true;
  }
  return false;
}

}  // namespace moetrim::checkpoint_detail
