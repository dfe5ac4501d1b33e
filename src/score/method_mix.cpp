// Several methods under one name: "easy-ep:0.7+reap:0.3".
#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/score.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

using Part = MethodMix::Part;

constexpr std::size_t kMostParts = 16;
constexpr double kLeastWeight = 1e-6;
constexpr double kMostWeight = 1e6;

/// Plain decimals only: an exponent's sign would look like the next part.
double parse_weight(std::string_view text, std::string_view part) {
  double weight = 0;
  const char* end = text.data() + text.size();
  const auto [last, error] = std::from_chars(text.data(), end, weight, std::chars_format::fixed);
  if (error == std::errc() && last == end && weight >= kLeastWeight && weight <= kMostWeight) return weight;
  throw UsageError(fmt::format("method {}: the weight {} is not a decimal from {:f} to {:.0f}; expected METHOD or "
                               "METHOD:WEIGHT", in_quotes(part), in_quotes(text), kLeastWeight, kMostWeight));
}

Part parse_part(std::string_view text) {
  const std::size_t colon = text.find(':');
  Part part{.method = &find_scoring_method(text.substr(0, colon)), .weight = 1};
  if (colon != std::string_view::npos) part.weight = parse_weight(text.substr(colon + 1), text);
  return part;
}

std::ptrdiff_t place_of(const Part& part) {
  const auto methods = scoring_methods();
  return std::find(methods.begin(), methods.end(), part.method) - methods.begin();
}

void check_parts(const std::vector<Part>& parts, std::string_view text) {
  for (std::size_t i = 1; i < parts.size(); ++i) {
    if (parts[i].method == parts[i - 1].method) {
      throw UsageError(fmt::format("method {}: {} is there twice", in_quotes(text), parts[i].method->name));
    }
    if (parts[i].method->grain != parts.front().method->grain) {
      throw UsageError(fmt::format("method {}: {} scores {}s and {} scores {}s, which cannot be added", in_quotes(text),
                                   parts.front().method->name, grain_name(parts.front().method->grain), parts[i].method->name,
                                   grain_name(parts[i].method->grain)));
    }
  }
  if (parts.size() == 1 && parts.front().weight != 1) {
    throw UsageError(fmt::format("method {}: the weight of one method alone changes nothing; leave it out", in_quotes(text)));
  }
}

/// Shortest digits that read back as the same number, without an exponent.
std::string weight_text(double weight) {
  std::array<char, 64> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), weight, std::chars_format::fixed).ptr;
  return {text.data(), end};
}

std::string join(const std::vector<Part>& parts, std::string_view ScoringMethod::*name) {
  std::string text;
  for (const Part& part : parts) {
    if ((part.method->*name).empty()) return {};
    text += (text.empty() ? "" : "+") + std::string(part.method->*name);
    if (part.weight != 1) text += ":" + weight_text(part.weight);
  }
  return text;
}

}  // namespace

MethodMix::MethodMix(const ScoringMethod& method) : parts_{{.method = &method, .weight = 1}} {}

MethodMix::MethodMix(std::vector<Part> parts) : parts_(std::move(parts)) {}

MethodMix MethodMix::parse(std::string_view text) {
  std::vector<Part> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('+', begin), text.size());
    if (parts.size() == kMostParts) {
      throw UsageError(fmt::format("method {}: at most {} methods", in_quotes(text), kMostParts));
    }
    parts.push_back(parse_part(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return place_of(a) < place_of(b); });
  check_parts(parts, text);
  return MethodMix(std::move(parts));
}

std::string MethodMix::name() const { return join(parts_, &ScoringMethod::name); }

std::string MethodMix::expert_method() const { return join(parts_, &ScoringMethod::expert_method); }

const ScoringMethod* MethodMix::second_order() const {
  const auto needs_it = [](const Part& part) { return part.method->second_order != nullptr; };
  const auto found = std::find_if(parts_.begin(), parts_.end(), needs_it);
  return found == parts_.end() ? nullptr : found->method;
}

}  // namespace moetrim
