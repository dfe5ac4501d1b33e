// What a search prints.

#include "cli/search_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace moetrim::cli {

using Json = nlohmann::ordered_json;

std::string describe_limits(const SearchLimits& limits) {
  std::vector<std::string> parts;
  if (limits.max_kl) parts.push_back(fmt::format("max-kl {}", *limits.max_kl));
  if (limits.max_loss_increase) parts.push_back(fmt::format("max-loss-increase {}", *limits.max_loss_increase));
  if (limits.min_exact_match) parts.push_back(fmt::format("min-exact-match {}", *limits.min_exact_match));
  if (limits.budget_bytes) parts.push_back(fmt::format("budget-bytes {}", *limits.budget_bytes));
  return fmt::format("{}", fmt::join(parts, " and "));
}

std::string describe_size(const SearchSize& size) {
  const PlanFlags& flags = size.flags;
  if (!size.by_layer.empty()) {
    const auto [least, most] = std::minmax_element(size.by_layer.begin(), size.by_layer.end());
    const double sum = std::accumulate(size.by_layer.begin(), size.by_layer.end(), 0.0);
    return fmt::format("{} to {} experts, {:.3g} on average", *least, *most, sum / static_cast<double>(size.by_layer.size()));
  }
  if (!flags.merge.empty()) return fmt::format("{} experts", flags.merge.to);
  std::string text = flags.keep.empty() ? "all experts" : flags.keep + " experts";
  if (!flags.keep_atoms.empty()) text += fmt::format(", {} of their atoms", flags.keep_atoms);
  return text;
}

Json size_json(const SearchSize& size) {
  const PlanFlags& flags = size.flags;
  Json json = Json::object();
  if (!flags.merge.empty()) {
    json["merge"] = flags.merge.method;
    json["merge_to"] = std::stoi(flags.merge.to);
    return json;
  }
  json["method"] = flags.score.method;
  if (!size.by_layer.empty()) json["keep_by_layer"] = size.by_layer;
  if (!flags.keep.empty()) json["keep"] = std::stoi(flags.keep);
  if (!flags.keep_atoms.empty()) {
    json["keep_atoms"] = flags.keep_atoms;
    json["scope"] = flags.scope;
  }
  return json;
}

namespace {

/// A figure of a row; empty where it was not measured.
std::string figure(const Json& row, const char* name, int digits, double factor = 1, const char* unit = "") {
  if (!row.contains(name)) return {};
  const Json& value = row.at(name);
  return value.is_null() ? "none" : fmt::format("{:.{}f}{}", factor * value.get<double>(), digits, unit);
}

std::string table_row(const std::string& mark, const std::string& by, const std::string& keeps, const Json& figures) {
  const std::string bytes = human_bytes(figures.at("bytes").get<std::uint64_t>());
  return fmt::format("{:<2} {:>10}  {:<28} {:<34} {:>8} {:>8} {:>7}\n", mark, bytes, by, keeps, figure(figures, "kl", 4),
                     figure(figures, "loss", 4), figure(figures, "exact_match", 1, 100, "%"));
}

std::string test_line(const Json& test) {
  const Json& pick = test.at("pick");
  const Json& whole = test.at("whole");
  std::string text = fmt::format("on the test: KL {}, loss {} (whole model {})", figure(pick, "kl", 4), figure(pick, "loss", 4),
                                 figure(whole, "loss", 4));
  if (pick.contains("exact_match")) {
    text += fmt::format(", exact match {} ({})", figure(pick, "exact_match", 1, 100, "%"), figure(whole, "exact_match", 1, 100, "%"));
  }
  return text + "\n";
}

/// Rounds that halve so many open sizes to none.
std::size_t halvings(std::size_t sizes) { return static_cast<std::size_t>(std::ceil(std::log2(static_cast<double>(sizes) + 1))); }

}  // namespace

std::string search_table(const Json& result, const SearchLimits& limits) {
  const Json& pick = result.at("pick");
  const auto is = [](const Json& a, const Json& b) { return a.at("arm") == b.at("arm") && a.at("bytes") == b.at("bytes"); };
  std::string text = fmt::format("{:<2} {:>10}  {:<28} {:<34} {:>8} {:>8} {:>7}\n", "", "tensors", "by", "keeps", "KL", "loss",
                                 "exact");
  for (const Json& row : result.at("candidates")) {
    const Json& frontier = result.at("frontier");
    const bool best = std::any_of(frontier.begin(), frontier.end(), [&](const Json& other) { return is(row, other); });
    text += table_row(std::string(best ? "*" : "") + (is(row, pick) ? ">" : ""), row.at("arm").get<std::string>(),
                      row.at("keeps").get<std::string>(), row);
  }
  text += table_row("", "the whole model", "", result.at("whole"));
  text += fmt::format("\n{}: {}, {}\n", describe_limits(limits), pick.at("arm").get<std::string>(),
                      pick.at("keeps").get<std::string>());
  if (result.contains("test")) text += test_line(result.at("test"));
  return text + fmt::format("{} of {} candidates measured, {} plans in {} passes over the weights; plan in {}\n",
                            result.at("candidates").size(), result.at("grid").get<std::size_t>(),
                            result.at("plans_measured").get<std::size_t>(), result.at("passes").get<int>(),
                            pick.at("plan").get<std::string>());
}

SearchExtent search_extent(const SearchFlags& search, const std::vector<PlannedArm>& arms, const RouterLimits& limits, int layers,
                           std::size_t at_once, bool all) {
  const bool whole_table = all || search.limits.min_exact_match.has_value();
  SearchExtent extent;
  std::size_t together = 0, alone = 0, longest = 0;   // evaluations of arms that share passes, of others, and in a row
  const auto add = [&](std::size_t sizes, bool is_alone) {
    const std::size_t needed = whole_table ? sizes : search.limits.quality() ? halvings(sizes) : 1;
    extent.candidates += sizes;
    (is_alone ? alone : together) += needed;
    if (!is_alone && !whole_table) longest = std::max(longest, needed);
  };
  for (const PlannedArm& arm : arms) add(arm.sizes.size(), arm.alone);
  if (search.by_layer) {
    const std::size_t methods = expert_methods(search).size();
    extent.curve_points = methods * static_cast<std::size_t>(layers) * curve_counts(search, limits).size();
    for (std::size_t i = 0; i < methods; ++i) add(tried_counts(search, limits).size(), false);
  }
  const auto passes = [&](std::size_t plans) { return (plans + at_once - 1) / at_once; };
  // Where there are more arms than plans in a pass, arms take turns: list scheduling. Sizes below the pick come last.
  extent.calls = passes(extent.curve_points) + passes(together) + longest + alone + (whole_table ? 0 : 1);
  return extent;
}

}  // namespace moetrim::cli
