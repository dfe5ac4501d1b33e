// Sizes as people write them: "5GB", "500 MiB".

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

constexpr std::array<std::pair<std::string_view, std::uint64_t>, 10> kUnits = {{
    {"", 1}, {"b", 1},
    {"kb", 1'000}, {"mb", 1'000'000}, {"gb", 1'000'000'000}, {"tb", 1'000'000'000'000},
    {"kib", 1ULL << 10}, {"mib", 1ULL << 20}, {"gib", 1ULL << 30}, {"tib", 1ULL << 40},
}};

[[noreturn]] void refuse(std::string_view text) {
  throw UsageError(fmt::format("{} is not a size; expected a positive number of bytes, or one with KB, MB, GB, TB (thousands) "
                               "or KiB, MiB, GiB, TiB (1024s), such as 5GB", in_quotes(text)));
}

std::uint64_t unit_bytes(std::string_view text, std::string_view unit) {
  std::string lower;
  for (const char c : unit) lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const auto& [name, bytes] : kUnits) {
    if (lower == name) return bytes;
  }
  refuse(text);
}

/// Digits as a whole number; refused when there are none or they do not fit.
std::uint64_t whole(std::string_view text, std::string_view digits) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc{} || end != digits.data() + digits.size()) refuse(text);
  return value;
}

}  // namespace

std::uint64_t parse_bytes(std::string_view text) {
  std::size_t digits = text.find_first_not_of("0123456789.");
  if (digits == std::string_view::npos) digits = text.size();
  const std::string_view number = text.substr(0, digits);
  std::string_view unit = text.substr(digits);
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  const std::uint64_t scale = unit_bytes(text, unit);
  const std::size_t point = number.find('.');
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(whole(text, number.substr(0, point)), scale, &bytes)) refuse(text);
  if (point != std::string_view::npos) {
    const std::string_view fraction = number.substr(point + 1);
    const double part = static_cast<double>(whole(text, fraction)) / std::pow(10.0, static_cast<double>(fraction.size()));
    if (__builtin_add_overflow(bytes, static_cast<std::uint64_t>(part * static_cast<double>(scale)), &bytes)) refuse(text);
  }
  if (bytes == 0) refuse(text);
  return bytes;
}

}  // namespace moetrim
