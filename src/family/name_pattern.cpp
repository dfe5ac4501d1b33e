// Tensor name patterns.

#include "family/name_pattern.h"

namespace moetrim {

namespace {

constexpr std::string_view kLayer = "{layer}";
constexpr std::string_view kExpert = "{expert}";

/// Takes a decimal of at most six digits from the front of `text`; -1 when there is none.
int take_number(std::string_view& text) {
  std::size_t digits = 0;
  int value = 0;
  while (digits < text.size() && digits < 6 && text[digits] >= '0' && text[digits] <= '9') {
    value = value * 10 + (text[digits] - '0');
    ++digits;
  }
  if (digits == 0 || (digits > 1 && text[0] == '0')) return -1;
  text.remove_prefix(digits);
  return value;
}

}  // namespace

std::optional<NameNumbers> match_name(std::string_view pattern, std::string_view name) {
  NameNumbers numbers;
  while (!pattern.empty()) {
    if (pattern.front() != '{') {
      if (name.empty() || name.front() != pattern.front()) return std::nullopt;
      pattern.remove_prefix(1);
      name.remove_prefix(1);
      continue;
    }
    const bool layer = pattern.starts_with(kLayer);
    const int value = take_number(name);
    if (value < 0) return std::nullopt;
    (layer ? numbers.layer : numbers.expert) = value;
    pattern.remove_prefix(layer ? kLayer.size() : kExpert.size());
  }
  if (!name.empty()) return std::nullopt;
  return numbers;
}

std::string expand_name(std::string_view pattern, int layer, int expert) {
  std::string out(pattern);
  if (const auto at = out.find(kLayer); at != std::string::npos) out.replace(at, kLayer.size(), std::to_string(layer));
  if (const auto at = out.find(kExpert); at != std::string::npos) out.replace(at, kExpert.size(), std::to_string(expert));
  return out;
}

}  // namespace moetrim
