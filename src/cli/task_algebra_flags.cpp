// The options of plans for several tasks: which are put together and how, which are protected, and which are dropped.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/stages.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim::cli {

namespace {

namespace fs = std::filesystem;

using Names = std::vector<std::string>;

constexpr std::string_view kProtectedShare = "0.1";
constexpr double kDropFactor = 0.1;  // takes what the plan's tasks hardly use; 1 takes what they need, see docs/tasks.md

/// "NAME" or "NAME:NUMBER"
struct Reference {
  std::string name;
  std::string number;
};

Reference parse_reference(std::string_view option, const std::string& text) {
  const auto colon = text.rfind(':');
  Reference reference{text.substr(0, colon), colon == std::string::npos ? "" : text.substr(colon + 1)};
  const bool whole = !reference.name.empty() && (colon == std::string::npos || !reference.number.empty());
  if (whole) return reference;
  throw UsageError(fmt::format("{} {}: expected a folder of statistics or a task, or one with :NUMBER behind it", option,
                               in_quotes(text)));
}

/// @param otherwise  where the reference has no number
double positive(std::string_view option, const Reference& reference, double otherwise = 1) {
  if (reference.number.empty()) return otherwise;
  double value = 0;
  const char* end = reference.number.data() + reference.number.size();
  const auto [last, error] = std::from_chars(reference.number.data(), end, value, std::chars_format::fixed);
  if (error == std::errc() && last == end && std::isfinite(value) && value > 0) return value;
  throw UsageError(fmt::format("{} {}:{}: expected a decimal above zero behind the last colon", option, reference.name,
                               reference.number));
}

Share share_of(const Reference& reference) {
  return Share::parse(reference.number.empty() ? kProtectedShare : std::string_view(reference.number), "--protect-task");
}

Names names_of(const StatisticsManifest& manifest) {
  Names names;
  for (const auto& task : manifest.tasks) names.push_back(task.name);
  return names;
}

using WeightedNames = std::vector<std::pair<std::string, double>>;

/// Each with weight 1.
WeightedNames weighted(const Names& names) {
  WeightedNames out;
  for (const auto& name : names) out.emplace_back(name, 1.0);
  return out;
}

bool has(const Names& names, const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); }

bool is_statistics(const fs::path& folder) { return fs::exists(folder / "manifest.json"); }

/// Published marks of experts without tokens cannot be normalised, see score().
void check_numbers(const MethodMix& method, const ScoreOptions& options) {
  for (const auto& part : method.parts()) {
    if (!part.method->by_library || options.variant != Variant::official) continue;
    throw UsageError(fmt::format("{} --variant official scores one set of demonstrations; leave --drop-task out, or take "
                                 "--variant executed",
                                 part.method->name));
  }
}

/// The tasks that are kept for, with their weights.
WeightedNames chosen(const Names& loaded, const std::set<std::string>& set_aside, const WeightedNames& named) {
  if (!named.empty()) return named;
  WeightedNames out;
  for (const auto& name : loaded) {
    if (!set_aside.contains(name)) out.emplace_back(name, 1.0);
  }
  if (out.empty()) throw UsageError("--drop-task and --protect-task take every task; say with --task what to keep experts for");
  return out;
}

}  // namespace

void TaskAlgebraFlags::add(CLI::App& command) {
  command.add_option("--with", with, "Put the tasks of other statistics beside: FOLDER or FOLDER:WEIGHT; repeatable")
      ->allow_extra_args(false);
  command.add_option("--combine", combine,
                     "How tasks are put together: sum (of their normalised scores) or union (the best of each); default: sum");
  command.add_option("--protect-task", protect,
                     "A share of every layer's experts, the best for this task, stay: TASK or FOLDER, or with :SHARE "
                     "(default: 0.1); repeatable")->allow_extra_args(false);
  command.add_option("--drop-task", drop,
                     "Subtract this task's normalised scores: TASK or FOLDER, or with :FACTOR (default: 0.1); repeatable")
      ->allow_extra_args(false);
}

bool TaskAlgebraFlags::empty() const { return with.empty() && combine.empty() && protect.empty() && drop.empty(); }

void TaskAlgebraFlags::check(const MethodMix& method, const ScoreOptions& options) const {
  for (const auto& text : with) positive("--with", parse_reference("--with", text));
  for (const auto& text : protect) share_of(parse_reference("--protect-task", text));
  for (const auto& text : drop) positive("--drop-task", parse_reference("--drop-task", text));
  if (!combine.empty() && combine != "sum" && combine != "union") {
    throw UsageError(fmt::format("--combine {}: expected sum or union", in_quotes(combine)));
  }
  if (method.grain() == Grain::atom && (combine == "union" || !protect.empty())) {
    throw UsageError(fmt::format("--combine union and --protect-task are for methods that score experts; {} scores atomic "
                                 "experts", method.name()));
  }
  if (drop.empty()) return;
  if (combine == "union") {
    throw UsageError("--drop-task subtracts scores, and --combine union has places; leave one of them out");
  }
  check_numbers(method, options);
}

fs::path TaskAlgebraFlags::folder_of(std::string_view option, const std::string& name) const {
  const fs::path folder = (base / name).lexically_normal();
  if (is_statistics(folder)) return folder;
  throw InvalidInput(fmt::format("{} {}: no such task, and no folder that calibrate wrote", option, name));
}

std::vector<fs::path> TaskAlgebraFlags::beside(Names loaded) const {
  std::vector<fs::path> out;
  for (const auto& text : with) {
    out.push_back(folder_of("--with", parse_reference("--with", text).name));
    const Names names = names_of(read_statistics_manifest(out.back()));
    loaded.insert(loaded.end(), names.begin(), names.end());
  }
  for (const auto& [option, texts] : {std::pair("--protect-task", &protect), std::pair("--drop-task", &drop)}) {
    for (const auto& text : *texts) {
      const std::string name = parse_reference(option, text).name;
      if (has(loaded, name)) {
        if (!is_statistics(base / name)) continue;
        throw UsageError(fmt::format("{} {}: a task and a folder have that name; write ./{} for the folder", option, name,
                                     name));
      }
      const fs::path folder = folder_of(option, name);
      if (std::find(out.begin(), out.end(), folder) == out.end()) out.push_back(folder);
    }
  }
  return out;
}

Names TaskAlgebraFlags::tasks_of(const StatisticsManifest& manifest, const std::string& name) const {
  if (has(names_of(manifest), name)) return {name};
  return names_of(read_statistics_manifest(base / name));
}

std::vector<std::pair<std::string, double>> TaskAlgebraFlags::scored(
    const StatisticsManifest& manifest, const std::vector<std::pair<std::string, double>>& named) const {
  if (empty()) return named;
  std::set<std::string> dropped;
  for (const auto& text : drop) {
    for (auto& name : tasks_of(manifest, parse_reference("--drop-task", text).name)) dropped.insert(std::move(name));
  }
  for (const auto& [name, weight] : named) {
    if (dropped.contains(name)) throw UsageError(fmt::format("task {} is both kept for and dropped", in_quotes(name)));
  }
  std::set<std::string> set_aside = dropped;
  for (const auto& text : protect) {
    for (auto& name : tasks_of(manifest, parse_reference("--protect-task", text).name)) set_aside.insert(std::move(name));
  }
  auto tasks = chosen(names_of(manifest), set_aside, named);
  for (const auto& text : with) {
    const Reference reference = parse_reference("--with", text);
    const double weight = positive("--with", reference);
    const Names names = names_of(read_statistics_manifest(base / reference.name));
    for (auto& [name, of_task] : tasks) {
      if (has(names, name)) of_task *= weight;
    }
  }
  return tasks;
}

Scores TaskAlgebraFlags::scores(const Statistics& statistics, const MethodMix& method, const ScoreOptions& options,
                                const std::vector<std::pair<std::string, double>>& named, int groups) const {
  const auto tasks = scored(statistics.manifest, named);
  if (combine == "union") {
    Names names;
    std::vector<double> weights;
    if (tasks.empty()) names = names_of(statistics.manifest);
    for (const auto& [name, weight] : tasks) {
      names.push_back(name);
      weights.push_back(weight);
    }
    return united(score_each(statistics, method, options, names), weights, groups);
  }
  const Scores wanted = moetrim::score(statistics, method, options, tasks);
  if (drop.empty()) return wanted;
  std::vector<Scores> unwanted;
  std::vector<double> factors;
  for (const auto& text : drop) {
    const Reference reference = parse_reference("--drop-task", text);
    unwanted.push_back(moetrim::score(statistics, method, options, weighted(tasks_of(statistics.manifest, reference.name))));
    factors.push_back(positive("--drop-task", reference, kDropFactor));
  }
  return without(wanted, unwanted, factors);
}

std::vector<ProtectedExpert> TaskAlgebraFlags::protected_experts(const Statistics& statistics, const MethodMix& method,
                                                                 const ScoreOptions& options, int groups) const {
  std::vector<ProtectedExpert> out;
  const std::int64_t group_size = statistics.manifest.experts / groups;
  for (const auto& text : protect) {
    const Reference reference = parse_reference("--protect-task", text);
    const Share share = share_of(reference);
    const auto count = static_cast<int>((share.part * group_size + share.whole - 1) / share.whole);  // rounded up
    const Names names = tasks_of(statistics.manifest, reference.name);
    const Scores scores = moetrim::score(statistics, method, options, weighted(names));
    const auto best = best_of(scores, count, groups);
    for (std::size_t l = 0; l < best.size(); ++l) {
      for (const int id : best[l]) out.push_back({scores.layers[l], id, fmt::format("task {}", fmt::join(names, "+"))});
    }
  }
  return out;
}

}  // namespace moetrim::cli
