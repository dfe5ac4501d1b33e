// The candidates of a search: plans in lines, by size.

#include "cli/search_arms.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/allocation.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/keep_counts.h"
#include "moetrim/runtimes.h"

namespace moetrim::cli {

namespace {

/// A bound of a range of experts; a number need not be legal itself.
int bound(const std::string& text, const RouterLimits& limits, bool regroup) {
  const KeepBudget budget = KeepBudget::parse(text);
  return budget.experts ? *budget.experts : legal_keep(limits, budget, regroup);
}

/// "0.5" to 0.5 x 10^9, in whole numbers: steps of binary fractions would drift.
std::int64_t billionths(const std::string& text) {
  const Share share = Share::parse(text, "keep-atoms");
  return share.part * (1'000'000'000 / share.whole);
}

std::string share_text(std::int64_t billionths) {
  std::string text = fmt::format("{}.{:09}", billionths / 1'000'000'000, billionths % 1'000'000'000);
  text.erase(text.find_last_not_of('0') + 1);
  return text.back() == '.' ? text + "0" : text;
}

std::vector<std::string> atom_shares(const SearchFlags& search) {
  const SizeGrid& grid = search.keep_atoms;
  if (!grid.list.empty()) return grid.list;
  if (grid.from.empty() || grid.step.empty()) throw UsageError("keep-atoms: expected a list, or from and step");
  const std::int64_t to = grid.to.empty() ? 1'000'000'000 : billionths(grid.to);
  const std::int64_t step = billionths(grid.step);
  std::vector<std::string> shares;
  for (std::int64_t share = billionths(grid.from); share <= to; share += step) shares.push_back(share_text(share));
  if (shares.empty()) throw UsageError(fmt::format("keep-atoms: nothing from {} to {}", grid.from, share_text(to)));
  return shares;
}

/// What every arm starts from. Options that are for another kind of method stay behind.
PlanFlags base(const SearchFlags& search, const std::string& method) {
  PlanFlags flags = search.plan;
  flags.merge = {};
  flags.score.method = method;
  if (MethodMix::parse(method).grain() == Grain::atom) return flags;
  flags.expert_method.clear();
  flags.align.clear();
  flags.atom_blocks.clear();
  flags.score.library.clear();
  return flags;
}

/// Legal for the router and for the runtimes.
std::vector<int> legal_counts(const SearchFlags& search, const RouterLimits& limits) {
  if (!search.served) return keep_counts(limits, search.plan.regroup);
  return legal_keeps(*search.served, parse_runtimes(search.plan.runtimes));
}

/// A number of the recipe, or the nearest legal one to a ratio.
int listed_count(const SearchFlags& search, const RouterLimits& limits, const std::string& text) {
  const KeepBudget budget = KeepBudget::parse(text);
  if (!search.served) return legal_keep(limits, budget, search.plan.regroup);
  return legal_keep(*search.served, parse_runtimes(search.plan.runtimes), budget);
}

PlannedArm dropping_arm(const SearchFlags& search, const std::string& method, const std::vector<int>& tried) {
  PlannedArm arm{.name = method};
  for (const int keep : tried) {
    arm.sizes.push_back({.flags = base(search, method)});
    arm.sizes.back().flags.keep = std::to_string(keep);
  }
  return arm;
}

PlannedArm merging_arm(const SearchFlags& search, const std::string& method, const std::vector<int>& tried, int experts) {
  PlannedArm arm{.name = "merge " + method, .alone = true};
  for (const int keep : tried) {
    if (keep == experts) continue;  // nothing would be merged
    PlanFlags flags;
    flags.score = search.plan.score;
    flags.protect = search.plan.protect;
    flags.regroup = search.plan.regroup;
    flags.runtimes = search.plan.runtimes;
    flags.merge = search.plan.merge;
    flags.merge.method = method;
    flags.merge.to = std::to_string(keep);
    arm.sizes.push_back({.flags = flags});
  }
  return arm;
}

/// Lines along the longer of the two grids, one for each value of the other.
std::vector<PlannedArm> atom_arms(const SearchFlags& search, const std::string& method, const std::string& scope,
                                  const std::vector<int>& tried, int experts) {
  const auto shares = atom_shares(search);
  const auto size = [&](int keep, const std::string& share) {
    SearchSize out{.flags = base(search, method)};
    out.flags.scope = scope;
    out.flags.keep_atoms = share;
    if (keep < experts) {
      out.flags.keep = std::to_string(keep);
    } else {
      out.flags.expert_method.clear();
    }
    return out;
  };
  const std::vector<int> counts = search.keep.empty() ? std::vector{experts} : tried;
  std::vector<PlannedArm> arms;
  if (counts.size() >= shares.size()) {
    for (const auto& share : shares) {
      arms.push_back({.name = fmt::format("{} {} ({})", method, share, scope)});
      for (const int keep : counts) arms.back().sizes.push_back(size(keep, share));
    }
    return arms;
  }
  for (const int keep : counts) {
    arms.push_back({.name = fmt::format("{} of {} experts ({})", method, keep, scope)});
    for (const auto& share : shares) arms.back().sizes.push_back(size(keep, share));
  }
  return arms;
}

/// Numbers that a layer may get, from `least` to all; every second, third, … where there are more than allocate() takes.
std::vector<int> allocated_counts(const SearchFlags& search, const RouterLimits& limits, int least) {
  constexpr std::size_t kMost = 256;
  std::vector<int> legal = legal_counts(search, limits);
  std::erase_if(legal, [&](int count) { return count < least; });
  const std::size_t step = (legal.size() + kMost - 1) / kMost;
  std::vector<int> counts;
  for (std::size_t i = (legal.size() - 1) % step; i < legal.size(); i += step) counts.push_back(legal[i]);
  return counts;
}

}  // namespace

std::vector<int> tried_counts(const SearchFlags& search, const RouterLimits& limits) {
  const bool regroup = search.plan.regroup;
  if (!search.keep.list.empty()) {
    std::vector<int> counts;
    for (const auto& text : search.keep.list) counts.push_back(listed_count(search, limits, text));
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    return counts;
  }
  const SizeGrid& grid = search.keep;
  const int from = grid.from.empty() ? 1 : bound(grid.from, limits, regroup);
  const int to = grid.to.empty() ? limits.experts : bound(grid.to, limits, regroup);
  const int step = grid.step.empty() ? 1 : parse_count(grid.step, "search.keep.step");
  std::vector<int> counts;
  for (const int keep : legal_counts(search, limits)) {
    const int away = grid.from.empty() ? limits.experts - keep : keep - from;
    if (keep >= from && keep <= to && away % step == 0) counts.push_back(keep);
  }
  if (counts.empty()) {
    throw InvalidInput(fmt::format("search.keep: no number of experts from {} to {} in steps of {} works with this router{}", from,
                                   to, step, search.plan.runtimes.empty() ? "" : " and every runtime"));
  }
  return counts;
}

std::vector<std::string> expert_methods(const SearchFlags& search) {
  std::vector<std::string> names;
  for (const auto& name : search.methods) {
    if (MethodMix::parse(name).grain() == Grain::expert) names.push_back(name);
  }
  return names;
}

std::vector<int> curve_counts(const SearchFlags& search, const RouterLimits& limits) {
  auto legal = legal_counts(search, limits);
  std::erase(legal, limits.experts);
  if (legal.empty()) throw InvalidInput("counts by-layer: no layer can keep fewer experts than it has");
  if (!search.curve_counts.empty()) {
    for (const int count : search.curve_counts) {
      legal_keep(limits, {.experts = count, .ratio = {}}, search.plan.regroup);
      if (count < limits.experts) continue;
      throw InvalidInput(fmt::format("search.curve-counts: {} is all experts, which costs nothing; leave it out", count));
    }
    return search.curve_counts;
  }
  constexpr std::size_t kPoints = 6;
  std::vector<int> counts;
  const std::size_t points = std::min(kPoints, legal.size());
  for (std::size_t i = 0; i < points; ++i) counts.push_back(legal[i * legal.size() / points]);
  return counts;
}

std::vector<PlannedArm> uniform_arms(const SearchFlags& search, const RouterLimits& limits) {
  const auto tried = tried_counts(search, limits);
  const auto experts = expert_methods(search);
  if (search.by_layer && experts.empty()) throw UsageError("counts by-layer: add a method that chooses whole experts");
  std::vector<PlannedArm> arms;
  for (const auto& method : search.methods) {
    if (MethodMix::parse(method).grain() == Grain::expert) {
      if (search.uniform) arms.push_back(dropping_arm(search, method, tried));
      continue;
    }
    for (const auto& scope : search.scopes.empty() ? std::vector<std::string>{"global"} : search.scopes) {
      for (auto& arm : atom_arms(search, method, scope, tried, limits.experts)) arms.push_back(std::move(arm));
    }
  }
  for (const auto& method : search.merges) arms.push_back(merging_arm(search, method, tried, limits.experts));
  for (const PlannedArm& arm : arms) {
    for (const SearchSize& size : arm.sizes) size.flags.check(limits);
  }
  return arms;
}

Planner::Planner(const Model& model, const Statistics& statistics, std::filesystem::path folder, std::string mtp)
    : model_(model), statistics_(statistics), folder_(std::move(folder)), mtp_(std::move(mtp)) {}

const Scores& Planner::scores(const PlanFlags& flags) const {
  const auto known = scores_.find(flags.score.method);
  if (known != scores_.end()) return known->second;
  return scores_.emplace(flags.score.method, flags.scores(statistics_)).first->second;
}

Plan Planner::plan(const SearchSize& size) const {
  if (!size.by_layer.empty()) {
    const PlanRequest request{.keep_by_layer = size.by_layer, .protect = size.flags.protect, .regroup = size.flags.regroup,
                              .correct_drift = size.flags.correct_drift};
    return make_plan(statistics_, scores(size.flags), request, variant_from_name(size.flags.score.variant));
  }
  return size.flags.make(statistics_, [&](int layer) { return read_vectors(folder_, statistics_.manifest, layer); });
}

std::uint64_t Planner::bytes(const SearchSize& size) {
  const Plan made = plan(size);
  std::vector<int> counts{made.counts == LayerCounts::listed ? 1 : 0};
  for (const PlanLayer& layer : made.layers) counts.push_back(static_cast<int>(layer.keep.size()));
  const bool drops_alone = made.width == 0 && !changes_values(made);
  if (const auto known = bytes_.find(counts); drops_alone && known != bytes_.end()) return known->second;
  const PrepareOptions options{.mtp = parse_mtp(mtp_), .sources = {.statistics = folder_}};
  std::uint64_t bytes = 0;
  for (const auto& tensor : prepare_export(model_, made, kVersion, options).tensors) bytes += tensor.spec.bytes();
  if (drops_alone) bytes_[counts] = bytes;
  return bytes;
}

void Planner::settle(PlannedArm& arm) {
  for (SearchSize& size : arm.sizes) {
    size.bytes = bytes(size);
    stop_if_requested();
  }
  const auto smaller = [](const SearchSize& a, const SearchSize& b) { return a.bytes < b.bytes; };
  const auto equal = [](const SearchSize& a, const SearchSize& b) { return a.bytes == b.bytes; };
  std::stable_sort(arm.sizes.begin(), arm.sizes.end(), smaller);
  arm.sizes.erase(std::unique(arm.sizes.begin(), arm.sizes.end(), equal), arm.sizes.end());
}

std::vector<int> Planner::evaluated_layers() const {
  std::vector<int> layers;
  for (const int layer : statistics_.manifest.moe_layers) {
    if (layer < model_.layers) layers.push_back(layer);
  }
  return layers;
}

std::vector<SearchSize> Planner::curve_sizes(const SearchFlags& search, const std::string& method,
                                             const LayerCurve& curve) const {
  const auto& layers = statistics_.manifest.moe_layers;
  const auto at = static_cast<std::size_t>(std::find(layers.begin(), layers.end(), curve.layer) - layers.begin());
  std::vector<SearchSize> sizes;
  for (const int count : curve.counts) {
    if (count == model_.experts) continue;
    sizes.push_back({.flags = base(search, method), .by_layer = std::vector<int>(layers.size(), model_.experts)});
    sizes.back().by_layer[at] = count;
  }
  return sizes;
}

PlannedArm Planner::by_layer_arm(const SearchFlags& search, const std::string& method, const std::vector<LayerCurve>& curves,
                                 const std::vector<int>& tried) const {
  const std::vector<int> counts = allocated_counts(search, router_limits(model_), curves.front().counts.front());
  std::vector<std::vector<double>> costs;
  for (const LayerCurve& curve : curves) costs.push_back(interpolate(curve, counts));
  PlannedArm arm{.name = method + " by layer"};
  for (const int keep : tried) {
    if (keep < counts.front()) continue;
    const auto chosen = allocate(costs, counts, static_cast<std::int64_t>(keep) * std::ssize(curves));
    SearchSize size{.flags = base(search, method), .by_layer = {}};
    // Blocks for multi-token prediction are not evaluated, and keep as many as the others on average.
    size.by_layer.assign(statistics_.manifest.moe_layers.size(), keep);
    for (std::size_t i = 0; i < chosen.size(); ++i) size.by_layer[i] = counts[static_cast<std::size_t>(chosen[i])];
    const bool equal = std::all_of(size.by_layer.begin(), size.by_layer.end(), [&](int count) { return count == keep; });
    if (equal && search.uniform) continue;  // a size of the method's own arm
    arm.sizes.push_back(std::move(size));
  }
  return arm;
}

}  // namespace moetrim::cli
