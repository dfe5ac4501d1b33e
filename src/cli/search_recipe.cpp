// Recipes of searches: a checkpoint, texts, limits, and what is tried.

#include "cli/search_recipe.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/recipe_part.h"
#include "moetrim/export.h"

namespace moetrim::cli {

namespace fs = std::filesystem;

namespace {

using Json = nlohmann::ordered_json;

std::string size_text(const Part& part, const char* name, const Json& item) {
  if (item.is_string()) return item.get<std::string>();
  if (!item.is_number()) part.fields().fail(name, "expected numbers, ratios, or shares such as \"50%\"");
  return item.dump();
}

SizeGrid read_sizes(Part& part, const fs::path& file, const char* name) {
  SizeGrid grid;
  if (!part.fields().has(name)) return grid;
  const Json& value = part.fields().at(name);
  if (value.is_array()) {
    for (const Json& item : value) grid.list.push_back(size_text(part, name, item));
    if (grid.list.empty()) part.fields().fail(name, "must not be empty");
    return grid;
  }
  if (!value.is_object()) part.fields().fail(name, "expected a list, or an object with \"from\", \"to\" and \"step\"");
  JsonFields range(value, file, fmt::format("search.{}", name));
  grid.from = number_or_text(range, "from");
  grid.to = number_or_text(range, "to");
  grid.step = number_or_text(range, "step");
  range.finish();
  return grid;
}

/// A list of names, each of `allowed` and once.
std::vector<std::string> read_choices(Part& part, const char* name, std::initializer_list<std::string_view> allowed) {
  const auto texts = part.texts(name, false);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (std::find(allowed.begin(), allowed.end(), texts[i]) == allowed.end()) {
      part.fields().fail(name, fmt::format("expected some of {}, got {}{}", fmt::join(allowed, ", "), in_quotes(texts[i]),
                                           did_you_mean(texts[i], allowed)));
    }
    if (std::find(texts.begin(), texts.begin() + static_cast<std::ptrdiff_t>(i), texts[i]) !=
        texts.begin() + static_cast<std::ptrdiff_t>(i)) {
      part.fields().fail(name, in_quotes(texts[i]) + " is there twice");
    }
  }
  return texts;
}

void read_limits(Part& part, SearchLimits& out) {
  constexpr double kMost = 1e6;
  if (part.fields().has("max-kl")) out.max_kl = part.fields().number("max-kl", 0, kMost);
  if (part.fields().has("max-loss-increase")) out.max_loss_increase = part.fields().number("max-loss-increase", -kMost, kMost);
  if (part.fields().has("min-exact-match")) out.min_exact_match = part.fields().number("min-exact-match", 0, 1);
  if (part.fields().has("budget-bytes")) out.budget_bytes = parse_bytes(number_or_text(part.fields(), "budget-bytes"));
}

/// Methods by their one spelling, each once.
std::vector<std::string> read_methods(Part& part) {
  std::vector<std::string> names;
  for (const auto& text : part.texts("method", false)) {
    names.push_back(MethodMix::parse(text).name());
    if (std::count(names.begin(), names.end(), names.back()) > 1) {
      part.fields().fail("method", in_quotes(text) + " is there twice");
    }
  }
  return names;
}

void read_search(Part& part, const fs::path& file, const fs::path& checkpoint, SearchFlags& out) {
  read_limits(part, out.limits);
  out.methods = read_methods(part);
  out.merges = read_choices(part, "merge", {"m-smoe", "hc-smoe", "ream", "uncurl"});
  out.scopes = read_choices(part, "scope", {"global", "layer", "expert"});
  const auto counts = read_choices(part, "counts", {"uniform", "by-layer"});
  const auto has = [&](const char* name) { return std::find(counts.begin(), counts.end(), name) != counts.end(); };
  if (!counts.empty()) {
    out.uniform = has("uniform");
    out.by_layer = has("by-layer");
  }
  out.keep = read_sizes(part, file, "keep");
  out.keep_atoms = read_sizes(part, file, "keep-atoms");
  if (part.fields().has("curve-counts")) {
    if (!out.by_layer) part.fields().fail("curve-counts", "is for counts by-layer; leave it out");
    out.curve_counts = part.fields().ascending("curve-counts", 1, 1 << 20);
  }
  part.integer("plans-per-pass", 1, out.plans_per_pass);
  read_plan_options(part, out.plan);
  read_merge_options(part, checkpoint, out.plan.merge);
  part.fields().finish();
  if (out.methods.empty() && out.merges.empty()) part.fields().fail("method", "expected at least one method, here or in merge");
}

/// What the candidates need is measured in the same run.
void check_statistics(const SearchFlags& search, const CalibrateFlags& flags, const Part& calibrate) {
  for (const auto& name : search.methods) {
    PlanFlags plan = search.plan;
    plan.score.method = name;
    plan.merge = {};
    if (MethodMix::parse(name).grain() == Grain::expert) plan.expert_method.clear();
    if (!search.keep.empty() && MethodMix::parse(name).grain() == Grain::atom) plan.keep = "1";
    if (!plan.needs_second_order() || flags.wants("second-order")) continue;
    calibrate.fields().fail("statistics", fmt::format("expected \"second-order\" among them, which {} needs", name));
  }
  for (const auto& name : search.merges) {
    MergeFlags merge = search.plan.merge;
    merge.method = name;
    merge.to = "1";
    check_vectors(merge, search.plan.score, flags, calibrate);
  }
}

}  // namespace

SearchRecipe SearchRecipe::read(const fs::path& file) {
  const auto json = read_json_file(file, /*comments=*/true);
  Part root(json, file, "");
  SearchRecipe recipe;
  if (root.fields().has("$schema")) root.fields().text("$schema");
  recipe.checkpoint = root.path("checkpoint");
  recipe.output = root.path("output");
  Part calibrate(root.fields().object("calibrate"), file, "calibrate");
  read_calibrate(calibrate, recipe.calibrate);
  Part search(root.fields().object("search"), file, "search");
  read_search(search, file, recipe.checkpoint, recipe.search);
  check_statistics(recipe.search, recipe.calibrate, calibrate);
  Part evaluate(root.fields().object("evaluate"), file, "evaluate");
  read_evaluate(evaluate, recipe.evaluate);
  if (root.fields().has("test")) {
    Part test(root.fields().object("test"), file, "test");
    read_evaluate(test, recipe.test.emplace());
  }
  root.fields().finish();
  return recipe;
}

}  // namespace moetrim::cli
