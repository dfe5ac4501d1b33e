// Bits for every expert: PMQ's cost of every choice, and the allocation of least cost within a layer or over all of them.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/precision.h"
#include "moetrim/suggest.h"
#include "plan/allocation/knapsack.h"

namespace moetrim {
namespace {

constexpr std::string_view kScopes[] = {"layer", "global"};
constexpr std::string_view kUnits[] = {"expert", "layer"};

template <std::size_t count>
std::size_t find_name(std::string_view option, std::string_view name, const std::string_view (&names)[count]) {
  const auto* found = std::find(std::begin(names), std::end(names), name);
  if (found != std::end(names)) return static_cast<std::size_t>(found - std::begin(names));
  throw UsageError(fmt::format("{} {}: expected {} or {}", option, in_quotes(name), names[0], names[1]));
}

/// (value / sum of values)^exponent; all zeros stay zeros.
std::vector<double> shares(const std::vector<double>& values, double exponent) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  std::vector<double> out;
  for (const double value : values) out.push_back(sum > 0 ? std::pow(value / sum, exponent) : 0.0);
  return out;
}

void check_factors(const PrecisionFactors& factors) {
  const auto bad = [](double value) { return !(std::isfinite(value) && value >= 0); };
  const bool wrong = std::any_of(factors.routed.begin(), factors.routed.end(), bad) ||
                     std::any_of(factors.gates.begin(), factors.gates.end(), bad) ||
                     std::any_of(factors.errors.begin(), factors.errors.end(),
                                 [&](const auto& errors) { return std::any_of(errors.begin(), errors.end(), bad); });
  if (wrong || factors.routed.empty() || factors.gates.size() != factors.routed.size() ||
      factors.errors.size() != factors.routed.size()) {
    throw InvalidInput(fmt::format("layer {}: routed tokens, gate sums and quantisation errors must be finite, not below "
                                   "zero, and there for every expert", factors.layer));
  }
}

/// What every expert costs at every level: [E, levels].
std::vector<double> costs_of(const PrecisionFactors& factors, const PrecisionRequest& request) {
  check_factors(factors);
  const auto routed = shares(factors.routed, request.exponents[0]);
  const auto gates = shares(factors.gates, request.exponents[1]);
  std::vector<double> costs;
  for (std::size_t expert = 0; expert < routed.size(); ++expert) {
    for (const int bits : request.levels) {
      const double error = factors.errors[expert][static_cast<std::size_t>(bits - 1)];
      costs.push_back(routed[expert] * gates[expert] * std::pow(error, request.exponents[2]));
    }
  }
  return costs;
}

/// What is above the lowest level is what a budget is spent on.
std::vector<int> sizes_of(const PrecisionRequest& request) {
  std::vector<int> sizes;
  for (const int level : request.levels) sizes.push_back(level - request.levels.front());
  return sizes;
}

/// Units for that many experts. Decimal bits are slightly off in binary; the slack is far below the last digit anybody
/// types.
int units_for(const PrecisionRequest& request, std::size_t experts) {
  constexpr double kSlack = 1e-9;
  return static_cast<int>(std::floor((request.bits - request.levels.front()) * static_cast<double>(experts) + kSlack));
}

Knapsack allocate(const std::vector<double>& costs, const PrecisionRequest& request, int budget) {
  return {costs, sizes_of(request), budget, request.unit == PrecisionUnit::expert};
}

[[noreturn]] void refuse_budget(const PrecisionRequest& request, std::size_t experts) {
  const auto sizes = sizes_of(request);
  const int least = std::accumulate(sizes.begin(), sizes.end(), 0);
  if (experts + 1 < request.levels.size()) {
    throw UsageError(fmt::format("{} levels for layers of {} experts: every level but the lowest is used at least once; "
                                 "choose fewer --levels", request.levels.size(), experts));
  }
  throw UsageError(fmt::format("--bits {}: every level but the lowest is used at least once in a layer of {} experts, which "
                               "needs {:.6f} bits", request.bits, experts,
                               request.levels.front() + static_cast<double>(least) / static_cast<double>(experts)));
}

/// Units for every layer of one budget for all, from what each costs with every number of units; exact. Where sums are
/// equal, lower layers get fewer.
std::vector<int> share_out(const std::vector<std::vector<double>>& least, int budget) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  const auto states = static_cast<std::size_t>(budget) + 1;
  std::vector<std::vector<int>> choice(least.size(), std::vector<int>(states));
  std::vector<double> after(states, 0.0);
  std::vector<double> best(states);
  for (std::size_t layer = least.size(); layer-- > 0;) {
    for (std::size_t left = 0; left < states; ++left) {
      best[left] = kNone;
      for (std::size_t units = 0; units < std::min(least[layer].size(), left + 1); ++units) {
        const double cost = least[layer][units] + after[left - units];
        if (cost >= best[left]) continue;
        best[left] = cost;
        choice[layer][left] = static_cast<int>(units);
      }
    }
    std::swap(after, best);
  }
  std::vector<int> units;
  if (after.back() == kNone) return units;
  std::size_t left = states - 1;
  for (std::size_t layer = 0; layer < least.size(); ++layer) {
    units.push_back(choice[layer][left]);
    left -= static_cast<std::size_t>(units.back());
  }
  return units;
}

std::vector<int> units_of_layers(std::span<const PrecisionFactors> factors, const PrecisionRequest& request) {
  std::vector<std::vector<double>> least;
  std::size_t experts = 0;
  for (const PrecisionFactors& layer : factors) {
    const int most = static_cast<int>(layer.routed.size()) * sizes_of(request).back();
    least.push_back(allocate(costs_of(layer, request), request, most).least());
    experts += layer.routed.size();
  }
  const auto units = share_out(least, units_for(request, experts));
  if (units.empty()) refuse_budget(request, factors.front().routed.size());
  return units;
}

std::vector<std::vector<int>> levels_of_experts(std::span<const PrecisionFactors> factors, const PrecisionRequest& request) {
  std::vector<int> units;
  if (request.scope == PrecisionScope::global) units = units_of_layers(factors, request);
  std::vector<std::vector<int>> levels;
  for (std::size_t l = 0; l < factors.size(); ++l) {
    const int budget = units.empty() ? units_for(request, factors[l].routed.size()) : units[l];
    const Knapsack allocation = allocate(costs_of(factors[l], request), request, budget);
    if (!std::isfinite(allocation.least().back())) refuse_budget(request, factors[l].routed.size());
    levels.push_back(allocation.choose(budget));
  }
  return levels;
}

/// One level for all experts of a layer.
std::vector<std::vector<int>> levels_of_layers(std::span<const PrecisionFactors> factors, const PrecisionRequest& request) {
  std::vector<double> costs;
  for (const PrecisionFactors& layer : factors) {
    const auto experts = costs_of(layer, request);
    std::vector<double> sums(request.levels.size());
    for (std::size_t i = 0; i < experts.size(); ++i) sums[i % sums.size()] += experts[i];
    costs.insert(costs.end(), sums.begin(), sums.end());
  }
  const int budget = units_for(request, factors.size());
  const auto chosen = allocate(costs, request, budget).choose(budget);
  std::vector<std::vector<int>> levels;
  for (std::size_t l = 0; l < factors.size(); ++l) levels.emplace_back(factors[l].routed.size(), chosen[l]);
  return levels;
}

}  // namespace

PrecisionScope precision_scope_from_name(std::string_view name) {
  return static_cast<PrecisionScope>(find_name("--scope", name, kScopes));
}

PrecisionUnit precision_unit_from_name(std::string_view name) {
  return static_cast<PrecisionUnit>(find_name("--width-per", name, kUnits));
}

void check_precision_request(const PrecisionRequest& request) {
  const auto& levels = request.levels;
  const bool ascending = std::adjacent_find(levels.begin(), levels.end(), std::greater_equal<>()) == levels.end();
  if (levels.size() < 2 || !ascending || levels.front() < 1 || levels.back() > kQuantisationBits) {
    throw UsageError(fmt::format("--levels: expected two or more widths from 1 to {}, ascending, for example 1,2,3",
                                 kQuantisationBits));
  }
  if (!(request.bits >= levels.front() && request.bits <= levels.back())) {
    throw UsageError(fmt::format("--bits {}: expected a number from {} to {}, the lowest and the highest of --levels",
                                 request.bits, levels.front(), levels.back()));
  }
  for (const double exponent : request.exponents) {
    if (exponent >= 0 && exponent <= 10) continue;
    throw UsageError("--exponents: expected three numbers from 0 to 10, for example 1,1.5,1");
  }
  if (request.unit == PrecisionUnit::layer && request.scope == PrecisionScope::layer) {
    throw UsageError("--width-per layer: with --scope layer every layer would have the same width; use --scope global");
  }
}

PrecisionPlan plan_precision(std::span<const PrecisionFactors> factors, const PrecisionRequest& request) {
  check_precision_request(request);
  if (factors.empty()) throw InvalidInput("the statistics have no MoE layer");
  const bool by_layer = request.unit == PrecisionUnit::layer;
  const auto levels = by_layer ? levels_of_layers(factors, request) : levels_of_experts(factors, request);
  PrecisionPlan plan{.request = request, .uniform = std::vector<double>(request.levels.size()), .layers = {}};
  std::size_t experts = 0;
  double bits = 0;
  for (std::size_t l = 0; l < factors.size(); ++l) {
    const auto costs = costs_of(factors[l], request);
    PrecisionLayer layer{.layer = factors[l].layer, .bits = {}};
    for (std::size_t i = 0; i < costs.size(); ++i) plan.uniform[i % request.levels.size()] += costs[i];
    plan.unseen += static_cast<int>(std::count(factors[l].routed.begin(), factors[l].routed.end(), 0.0));
    for (std::size_t e = 0; e < levels[l].size(); ++e) {
      const auto level = static_cast<std::size_t>(levels[l][e]);
      layer.bits.push_back(request.levels[level]);
      layer.loss += costs[e * request.levels.size() + level];
      bits += layer.bits.back();
    }
    experts += layer.bits.size();
    plan.loss += layer.loss;
    plan.layers.push_back(std::move(layer));
  }
  plan.average = bits / static_cast<double>(experts);
  return plan;
}

nlohmann::ordered_json precision_to_json(const PrecisionPlan& plan, const StatisticsManifest& manifest) {
  const PrecisionRequest& request = plan.request;
  nlohmann::ordered_json tasks = nlohmann::ordered_json::array();
  for (const auto& task : manifest.tasks) tasks.push_back(task.name);
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const auto& layer : plan.layers) {
    layers.push_back({{"layer", layer.layer}, {"loss", layer.loss}, {"bits", layer.bits}});
  }
  return {{"format", "moetrim-precision"},
          {"version", 1},
          {"method", "pmq"},
          {"checkpoint_fingerprint", manifest.checkpoint_fingerprint},
          {"family", manifest.family},
          {"tasks", tasks},
          {"bits", request.bits},
          {"levels", request.levels},
          {"scope", kScopes[static_cast<std::size_t>(request.scope)]},
          {"width_per", kUnits[static_cast<std::size_t>(request.unit)]},
          {"exponents", request.exponents},
          {"average_bits", plan.average},
          {"loss", plan.loss},
          {"uniform_loss", plan.uniform},
          {"unseen", plan.unseen},
          {"layers", layers}};
}

}  // namespace moetrim
