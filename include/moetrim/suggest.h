// The nearest known name to a misspelt one, and safe quoting of foreign text, for error messages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moetrim {

/// Levenshtein distance: single-character insertions, deletions and replacements.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

/// The name nearest to `word`, or nothing when none is near enough to be what was meant. The first of equals wins.
/// @param names  any range of things that convert to std::string_view.
template <class Names>
std::optional<std::string> closest(std::string_view word, const Names& names) {
  constexpr std::size_t kLongestWord = 64;  // nobody misspells more, and a hostile key must not cost time
  if (word.empty() || word.size() > kLongestWord) return std::nullopt;
  std::size_t best = std::max<std::size_t>(1, word.size() / 3) + 1;
  std::optional<std::string> found;
  for (const auto& name : names) {
    const std::string_view candidate = name;
    const std::size_t distance = edit_distance(word, candidate);
    if (distance >= best) continue;
    best = distance;
    found = std::string(candidate);
  }
  return found;
}

/// `; did you mean "NAME"?`, or nothing.
template <class Names>
std::string did_you_mean(std::string_view word, const Names& names) {
  const auto name = closest(word, names);
  return name ? "; did you mean \"" + *name + "\"?" : std::string();
}

/// The text in quotes, without control characters and cut to a length that fits a message.
inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 60;
  const auto continues_character = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; };
  std::size_t end = std::min(text.size(), kLongest);
  while (end < text.size() && end > 0 && continues_character(text[end])) --end;
  std::string out = "\"";
  for (const char c : text.substr(0, end)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? '?' : c;
  return out + (end < text.size() ? "...\"" : "\"");
}

}  // namespace moetrim
