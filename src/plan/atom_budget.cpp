// How many atomic experts stay: exact shares, and the one rounding of them.
#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/plan.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

constexpr std::array kScopes{AtomScope::global, AtomScope::layer, AtomScope::expert};
constexpr std::size_t kMostDigits = 9;

[[noreturn]] void refuse_share(std::string_view text, std::string_view what) {
  throw UsageError(fmt::format("{} {}: expected a share above 0 and at most 1 (0.75, 75%), with at most {} digits behind the "
                               "point",
                               what, in_quotes(text), kMostDigits));
}

bool all_digits(std::string_view text) { return text.find_first_not_of("0123456789") == std::string_view::npos; }

std::int64_t number(std::string_view digits) {
  std::int64_t value = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return value;
}

}  // namespace

Share Share::parse(std::string_view text, std::string_view what) {
  const bool percent = text.ends_with('%');
  const std::string_view decimal = text.substr(0, text.size() - (percent ? 1 : 0));
  const std::size_t point = std::min(decimal.find('.'), decimal.size());
  const std::string_view fraction = decimal.substr(std::min(point + 1, decimal.size()));
  const std::string digits = std::string(decimal.substr(0, point)) + std::string(fraction);
  const std::size_t behind = fraction.size() + (percent ? 2 : 0);
  const bool fits = !digits.empty() && digits.size() <= 2 * kMostDigits && behind <= kMostDigits;
  if (!fits || !all_digits(digits)) refuse_share(text, what);
  Share share{.part = number(digits), .whole = 1};
  for (std::size_t i = 0; i < behind; ++i) share.whole *= 10;
  if (share.part < 1 || share.part > share.whole) refuse_share(text, what);
  return share;
}

AtomBudget AtomBudget::parse(std::string_view text) {
  if (text.empty() || !all_digits(text)) return {.atoms = {}, .share = Share::parse(text, "keep-atoms")};
  if (text.size() > 2 * kMostDigits || number(text) < 1) {
    throw UsageError(fmt::format("keep-atoms {}: expected a number of atomic experts from 1, or a share (0.75, 75%)",
                                 in_quotes(text)));
  }
  return {.atoms = number(text), .share = {}};
}

std::int64_t AtomBudget::of(std::int64_t total) const {
  if (atoms && *atoms > total) {
    throw InvalidInput(fmt::format("keep-atoms {}: the kept experts have {} atomic experts", *atoms, total));
  }
  if (atoms) return *atoms;
  if (!share) return total;
  const std::int64_t removed = share->whole - share->part;
  // Whole and rest apart, so that no product leaves 64 bits.
  return total - (total / share->whole * removed + total % share->whole * removed / share->whole);
}

std::string_view atom_scope_name(AtomScope scope) {
  switch (scope) {
    case AtomScope::global: return "global";
    case AtomScope::layer: return "layer";
    case AtomScope::expert: return "expert";
  }
  return "";
}

AtomScope atom_scope_from_name(std::string_view name) {
  for (const AtomScope scope : kScopes) {
    if (atom_scope_name(scope) == name) return scope;
  }
  throw UsageError(fmt::format("scope {}: expected global, layer or expert", in_quotes(name)));
}

}  // namespace moetrim
