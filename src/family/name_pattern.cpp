// Tensor name patterns.

#include "family/name_pattern.h"

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

constexpr std::string_view kLayer = "{layer}";
constexpr std::string_view kExpert = "{expert}";
constexpr std::string_view kMtp = "{mtp}";

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
    const int value = take_number(name);
    if (value < 0) return std::nullopt;
    const auto take = [&](std::string_view placeholder, int& number) {
      if (!pattern.starts_with(placeholder)) return false;
      number = value;
      pattern.remove_prefix(placeholder.size());
      return true;
    };
    if (!take(kLayer, numbers.layer) && !take(kExpert, numbers.expert) && !take(kMtp, numbers.mtp)) return std::nullopt;
  }
  if (!name.empty()) return std::nullopt;
  return numbers;
}

std::string expand_name(std::string_view pattern, int layer, int expert) {
  std::string out(pattern);
  const auto put = [&](std::string_view placeholder, int number) {
    if (const auto at = out.find(placeholder); at != std::string::npos) out.replace(at, placeholder.size(), std::to_string(number));
  };
  put(kLayer, layer);
  put(kExpert, expert);
  put(kMtp, 0);
  return out;
}

std::string with_expert(std::string_view pattern, std::string_view name, int expert) {
  std::string_view rest = name;
  while (!pattern.starts_with(kExpert)) {
    if (pattern.empty()) throw Error(fmt::format("{} has no expert number", name));
    if (pattern.front() == '{') {
      pattern.remove_prefix(pattern.find('}') + 1);
      take_number(rest);
    } else {
      pattern.remove_prefix(1);
      rest.remove_prefix(1);
    }
  }
  const std::string front(name.substr(0, name.size() - rest.size()));
  take_number(rest);
  return fmt::format("{}{}{}", front, expert, rest);
}

}  // namespace moetrim
