// Limits on atomic experts, bytes and multiply-adds to the atomic experts that stay.
#include "plan/choose_atoms.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "plan/atom_ranking.h"
#include "plan/cost.h"

namespace moetrim {
namespace {

/// The sums of shares are slightly off in binary: far above that error, far below what anybody asks for.
constexpr double kSlack = 1e-12;

std::vector<RankedExpert> ranked_experts(const Scores& scores, const Plan& plan) {
  std::vector<RankedExpert> experts;
  std::vector<std::ptrdiff_t> first;  // of every layer
  for (std::size_t l = 0; l < plan.layers.size(); ++l) {
    first.push_back(std::ssize(experts));
    for (const int expert : plan.layers[l].keep) {
      const auto width = static_cast<std::size_t>(scores.width);
      experts.push_back({std::span(scores.values[l]).subspan(static_cast<std::size_t>(expert) * width, width)});
    }
  }
  for (const ProtectedExpert& expert : plan.protect) {
    const auto layer = std::find_if(plan.layers.begin(), plan.layers.end(),
                                    [&](const PlanLayer& candidate) { return candidate.layer == expert.layer; });
    const auto place = std::lower_bound(layer->keep.begin(), layer->keep.end(), expert.expert) - layer->keep.begin();
    experts[static_cast<std::size_t>(first[static_cast<std::size_t>(layer - plan.layers.begin())] + place)].whole = true;
  }
  return experts;
}

/// Experts that the atomic experts are chosen among together; a layer's are as many in every layer (check_limits).
std::size_t pool_size(const Plan& plan, AtomScope scope) {
  if (scope == AtomScope::expert) return 1;
  return scope == AtomScope::layer ? plan.layers.front().keep.size() : static_cast<std::size_t>(kept_experts(plan));
}

/// The largest number in [low, high] that fits, where `low` does and every number below one that fits does too.
template <class Fits>
std::int64_t largest(std::int64_t low, std::int64_t high, const Fits& fits) {
  while (low < high) {
    const std::int64_t middle = high - (high - low) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// Everything that decides how many atomic experts stay.
class AtomLimits {
 public:
  AtomLimits(const StatisticsManifest& manifest, const PlanRequest& request, const std::vector<std::vector<double>>& routed,
             const Plan& plan, const AtomRanking& ranking)
      : manifest_(manifest), request_(request), ranking_(ranking), flops_(plan.layers, routed, manifest.expert_width),
        dropped_(static_cast<std::int64_t>(plan.layers.size()) * plan.experts - kept_experts(plan)),
        protects_(!plan.protect.empty()) {}

  std::int64_t total() const { return ranking_.pools() * ranking_.pool_atoms(); }
  double flops(const std::vector<int>& widths) const { return flops_.share(widths); }
  std::int64_t bytes(std::int64_t atoms) const { return expected_bytes(manifest_, dropped_, total() - atoms); }

  /// In all layers: the number or share that was asked for, and the bytes.
  std::int64_t most_atoms() const {
    const std::int64_t asked = request_.keep_atoms.of(total());
    if (asked < least()) refuse(fmt::format("keep-atoms leaves {} of {} atomic experts", asked, total()));
    if (!request_.budget_bytes) return asked;
    const auto fits = [&](std::int64_t atoms) { return bytes_fit(bytes(atoms), *request_.budget_bytes); };
    if (!fits(least())) {
      refuse(fmt::format("budget-bytes {} is below the {} of the smallest checkpoint", *request_.budget_bytes,
                         bytes(least())));
    }
    return largest(least(), asked, fits);
  }

  /// The most atomic experts that a pool can have within all limits.
  std::int64_t target() const {
    const std::int64_t most = most_atoms() / ranking_.pools();
    if (!request_.budget_flops) return most;
    const double budget = request_.budget_flops->value();
    const auto share = [&](std::int64_t target) { return flops(ranking_.widths(target)); };
    const auto fits = [&](std::int64_t target) { return share(target) <= budget * (1 + kSlack); };
    if (!fits(ranking_.least())) {
      refuse(fmt::format("budget-flops {} is below the {:.6g} of the least that can run", budget, share(ranking_.least())));
    }
    return largest(ranking_.least(), most, fits);
  }

 private:
  std::int64_t least() const { return ranking_.pools() * ranking_.least(); }

  /// @param problem  what falls short of the least.
  [[noreturn]] void refuse(const std::string& problem) const {
    if (request_.scope == AtomScope::expert && protects_) {
      throw InvalidInput(fmt::format("{}: a protected expert keeps all its {}, and --scope expert gives every expert as many; "
                                     "use --scope layer or global",
                                     problem, manifest_.expert_width));
    }
    std::string reason = protects_ ? "for the protected experts" : "";
    if (request_.scope != AtomScope::global) {
      reason += fmt::format("{}{} in every {}", reason.empty() ? "" : ": ", ranking_.least(),
                            atom_scope_name(request_.scope));
    }
    throw InvalidInput(fmt::format("{}; at least {} of {} must stay{}", problem, least(), total(),
                                   reason.empty() ? "" : " (" + reason + ")"));
  }

  const StatisticsManifest& manifest_;
  const PlanRequest& request_;
  const AtomRanking& ranking_;
  const ExpertFlops flops_;
  const std::int64_t dropped_;
  const bool protects_;
};

std::string rounding_rule(const PlanRequest& request, int step) {
  std::string rule = request.keep_atoms.share ? "the removed share's whole part goes" : "as many as the limits allow";
  if (request.scope != AtomScope::global) {
    rule += fmt::format("; equally many stay in every {}, rounded down", atom_scope_name(request.scope));
  }
  if (step > 1) rule += fmt::format("; an expert keeps all, or a multiple of {}", step);
  return rule;
}

void write_source(const PlanRequest& request, const AtomLimits& limits, const std::vector<int>& widths, int step,
                  bool with_bytes, nlohmann::ordered_json& source) {
  const std::int64_t kept = std::accumulate(widths.begin(), widths.end(), std::int64_t{0});
  nlohmann::ordered_json rounding;
  if (request.keep_atoms.share) rounding["share"] = request.keep_atoms.share->value();
  rounding["of"] = limits.total();
  rounding["most"] = limits.most_atoms();
  rounding["kept"] = kept;
  rounding["rule"] = rounding_rule(request, step);
  source["rounding"]["atoms"] = std::move(rounding);
  source["atoms"] = {{"scope", atom_scope_name(request.scope)},
                     {"align", request.align},
                     {"atom_blocks", request.atom_blocks}};
  if (request.budget_flops) source["budget_flops"] = request.budget_flops->value();
  if (with_bytes) source["expected"]["bytes"] = limits.bytes(kept);
  source["expected"]["flops"] = limits.flops(widths);
}

}  // namespace

void choose_atoms(const StatisticsManifest& manifest, const Scores& scores, const PlanRequest& request,
                  const std::vector<std::vector<double>>& routed, Plan& plan) {
  const int step = std::max(request.align, request.atom_blocks);
  const AtomRanking ranking(ranked_experts(scores, plan), pool_size(plan, request.scope), request.atom_blocks, step);
  const AtomLimits limits(manifest, request, routed, plan, ranking);
  const auto widths = ranking.widths(limits.target());
  plan.width = scores.width;
  std::size_t expert = 0;
  for (PlanLayer& layer : plan.layers) {
    for (std::size_t i = 0; i < layer.keep.size(); ++i, ++expert) {
      layer.atoms.push_back(ranking.ranges(expert, widths[expert]));
    }
  }
  write_source(request, limits, widths, step, has_sizes(manifest), plan.source);
}

}  // namespace moetrim
