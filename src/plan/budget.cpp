// How many experts stay: parsing, and the one rounding of a ratio.
#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/plan.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

[[noreturn]] void refuse(std::string_view text) {
  throw UsageError(fmt::format(
      "keep {}: expected a number of experts (16), or a ratio above 0 and at most 1 (0.5, 50%)", in_quotes(text)));
}

/// The whole text as one number. @return false when it is not.
template <class Number>
bool parse_all(std::string_view text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

KeepBudget KeepBudget::parse(std::string_view text) {
  KeepBudget budget;
  if (text.empty() || text.find_first_not_of("0123456789.%") != std::string_view::npos) refuse(text);
  int experts = 0;
  if (parse_all(text, experts)) {
    if (experts < 1) refuse(text);
    budget.experts = experts;
    return budget;
  }
  const bool percent = text.back() == '%';
  double ratio = 0;
  if (!parse_all(percent ? text.substr(0, text.size() - 1) : text, ratio)) refuse(text);
  if (percent) ratio /= 100;
  if (!(ratio > 0 && ratio <= 1)) refuse(text);
  budget.ratio = ratio;
  return budget;
}

int KeepBudget::of(int experts_before, int step) const {
  if (experts.has_value() == ratio.has_value()) throw UsageError("keep: expected either a number of experts or a ratio");
  if (experts) return *experts;
  if (!(*ratio > 0 && *ratio <= 1)) refuse(fmt::format("{}", *ratio));
  // Half up. Decimal ratios are slightly off in binary (0.29 x 100 = 28.999999999999996, 0.145 x 100 = 14.499999999999998):
  // the slack is far above that error and far below the last digit that anybody types.
  constexpr double kSlack = 1e-9;
  return step * static_cast<int>(std::floor(*ratio * experts_before / step + 0.5 + kSlack));
}

}  // namespace moetrim
