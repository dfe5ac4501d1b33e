// Plans that repeat experts: how many copies each gets, and which routers keep the function.

#include "moetrim/upcycle.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

constexpr int kMostExperts = 1 << 16;
constexpr int kMostTimes = 64;

/// Why copies would not share the gate weight that one expert had; empty when they do.
std::string_view split_problem(const StatisticsManifest& manifest) {
  const Family* family = find_family(manifest.family);
  if (family == nullptr) return "its router is not known";
  if (family->router.score == RouterScore::sparsemixer) return "its router always takes two experts";
  if (family->router.gate_on_input) return "its gates multiply the experts' inputs";
  const bool sigmoid = manifest.router == "sigmoid";
  if (sigmoid && !manifest.gates_normalised) {
    return "its gates are sigmoids that are not divided by their sum, so copies add up";
  }
  if (manifest.groups.count > manifest.groups.chosen && manifest.groups.rule == "top2") {
    return "it chooses groups by their two best experts, which two copies of one would become";
  }
  const bool grouped = manifest.groups.count > 1;
  if (!sigmoid && !manifest.router_selects_by_logit && !grouped) {
    return "it adds a selection bias to a softmax, which copies make smaller beside it";
  }
  return {};
}

/// Slots for every expert: one, and a share of the rest. [experts]
std::vector<int> apportion(const std::vector<double>& utility, int slots) {
  const auto experts = utility.size();
  const int rest = slots - static_cast<int>(experts);
  const double sum = std::accumulate(utility.begin(), utility.end(), 0.0);
  std::vector<int> out(experts, 1);
  std::vector<double> remainders(experts);
  int given = 0;
  for (std::size_t e = 0; e < experts; ++e) {
    const double share = rest * (sum > 0 ? utility[e] / sum : 1.0 / static_cast<double>(experts));
    const double whole = std::floor(share);
    out[e] += static_cast<int>(whole);
    given += static_cast<int>(whole);
    remainders[e] = share - whole;
  }
  std::vector<std::size_t> order(experts);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return remainders[a] > remainders[b]; });
  for (int i = 0; i < rest - given; ++i) ++out[order[static_cast<std::size_t>(i)]];
  return out;
}

void check_scores(const StatisticsManifest& manifest, const Scores& scores) {
  if (scores.grain != Grain::expert || scores.layers != manifest.moe_layers) {
    throw InvalidInput(fmt::format("{}: expected scores of the experts of all {} MoE layers", scores.method,
                                   manifest.moe_layers.size()));
  }
  for (std::size_t l = 0; l < scores.values.size(); ++l) {
    for (const double value : scores.values[l]) {
      if (std::isfinite(value) && value >= 0) continue;
      throw InvalidInput(fmt::format("layer {}: a {} score is {}; copies are shared out by scores that are not below zero",
                                     scores.layers[l], scores.method, value));
    }
  }
}

/// The slots of a layer: every expert, followed by its copies; as many in each of the router's groups.
std::vector<int> slots_of(const std::vector<double>& utility, int slots, int groups) {
  const auto size = utility.size() / static_cast<std::size_t>(groups);
  std::vector<int> keep;
  for (std::size_t begin = 0; begin < utility.size(); begin += size) {
    const auto first = utility.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto copies = apportion({first, first + static_cast<std::ptrdiff_t>(size)}, slots / groups);
    for (std::size_t e = 0; e < size; ++e) {
      keep.insert(keep.end(), static_cast<std::size_t>(copies[e]), static_cast<int>(begin + e));
    }
  }
  return keep;
}

}  // namespace

UpcycleTopK upcycle_top_k_from_name(std::string_view name) {
  if (name == "keep") return UpcycleTopK::keep;
  if (name == "scale") return UpcycleTopK::scale;
  throw UsageError(fmt::format("--top-k {}: expected keep or scale", in_quotes(name)));
}

void UpcycleRequest::parse_to(std::string_view text) {
  const bool is_times = !text.empty() && text.back() == 'x';
  const std::string_view digits = is_times ? text.substr(0, text.size() - 1) : text;
  int value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool read = error == std::errc() && end == digits.data() + digits.size();
  if (!read || value < 1 || value > (is_times ? kMostTimes : kMostExperts)) {
    throw UsageError(fmt::format("--to {}: expected a number of experts (128), or how many times as many (2x)",
                                 in_quotes(text)));
  }
  (is_times ? times : to) = value;
}

void check_upcycle(const StatisticsManifest& manifest, const UpcycleRequest& request) {
  const int experts = request.experts(manifest.experts);
  if (experts <= manifest.experts) {
    throw InvalidInput(fmt::format("--to {}: the checkpoint has {} experts in every layer already", experts,
                                   manifest.experts));
  }
  if (experts % manifest.groups.count != 0) {
    throw InvalidInput(fmt::format("--to {}: the router has {} groups, and every one needs as many experts", experts,
                                   manifest.groups.count));
  }
  if (!(request.noise >= 0 && request.noise <= 1)) {
    throw UsageError(fmt::format("--noise {}: expected a number from 0 to 1", request.noise));
  }
  if (request.top_k == UpcycleTopK::keep) return;
  if (!request.uniform || experts % manifest.experts != 0) {
    throw UsageError("--top-k scale keeps the function where every expert has as many copies; add --uniform, and --to 2x or "
                     "another multiple");
  }
  if (const std::string_view problem = split_problem(manifest); !problem.empty()) {
    throw InvalidInput(fmt::format("--top-k scale: {} cannot keep its function: {}; use --top-k keep", manifest.family,
                                   problem));
  }
}

Plan upcycle_plan(const StatisticsManifest& manifest, const Scores* utility, const UpcycleRequest& request) {
  check_upcycle(manifest, request);
  if (utility != nullptr) check_scores(manifest, *utility);
  Plan plan = whole_plan(manifest);
  plan.method = utility == nullptr ? "upcycle-uniform" : "upcycle-" + utility->method;
  plan.order = SlotOrder::free;
  plan.keep = request.experts(manifest.experts);
  plan.noise = request.noise;
  plan.noise_seed = request.noise > 0 ? request.seed : 0;
  if (request.top_k == UpcycleTopK::scale) {
    plan.experts_per_token_after = manifest.experts_per_token * (plan.keep / manifest.experts);
  }
  const std::vector<double> alike(static_cast<std::size_t>(manifest.experts), 1.0);
  for (std::size_t l = 0; l < plan.layers.size(); ++l) {
    plan.layers[l].keep = slots_of(utility == nullptr ? alike : utility->values[l], plan.keep, manifest.groups.count);
  }
  if (utility != nullptr) plan.source = utility->source;
  return plan;
}

}  // namespace moetrim
