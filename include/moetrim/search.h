// Search: the smallest checkpoint within limits of quality, or the best within a budget of bytes, among candidates that are
// measured many at a time. What a candidate is, and how it is measured, the caller knows.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// A way to make checkpoints smaller, in sizes: the same method with more and more experts, say.
struct SearchArm {
  std::string name;
  std::vector<std::uint64_t> bytes;  ///< of the sizes, strictly ascending
  bool alone = false;                ///< measured one by one: what no mask can stand for has to be written
};

struct Candidate {
  std::size_t arm = 0;
  std::size_t size = 0;   ///< index into SearchArm::bytes

  auto operator<=>(const Candidate&) const = default;
};

/// What a candidate costs against the whole model, in nats, mean over the predicted tokens.
struct Quality {
  double kl = 0;              ///< KL(whole || candidate)
  double loss_increase = 0;
};

/// All that are set must be met.
struct SearchLimits {
  std::optional<double> max_kl;
  std::optional<double> max_loss_increase;
  std::optional<double> min_exact_match;      ///< share of the answers, 0 to 1
  std::optional<std::uint64_t> budget_bytes;

  bool quality() const { return max_kl || max_loss_increase || min_exact_match; }
};

struct SearchOptions {
  SearchLimits limits;
  std::size_t at_once = 1;   ///< candidates that share a pass
  bool all = false;          ///< measure every candidate
};

struct SearchFunctions {
  /// Given at most SearchOptions::at_once candidates, none of them `alone`, or one that is.
  std::function<std::vector<Quality>(std::span<const Candidate>)> measure;
  /// Given candidates that meet all other limits; called only where min_exact_match is set.
  std::function<double(const Candidate&)> exact_match;
};

struct SearchResult {
  std::optional<Candidate> pick;
  std::optional<Candidate> nearest;            ///< without a pick: of those measured within the budget, if any
  std::vector<Candidate> frontier;             ///< of those measured: no smaller one has as little KL; by bytes
  std::map<Candidate, Quality> measured;
  std::map<Candidate, double> exact_match;
};

/// Sizes of the pick's own arm that are looked at below it, since quality is not exactly monotone.
inline constexpr std::size_t kSizesBelow = 2;

/// Finds the candidate that meets the limits: the smallest, of equal bytes that with the lowest KL, then the earlier arm; with a
/// budget alone the one with the lowest KL, then the smallest, then the earlier arm.
///
/// With limits of KL or loss every arm is bisected, with as many points of all arms in one call of `measure` as it takes; sizes
/// that are larger than the best candidate so far are not looked at. Where the limited measures fall with the size in
/// every arm, the pick is that of measuring everything. In any case
///   - the pick meets the limits, and the next kSizesBelow smaller sizes of its arm were measured and do not;
///   - in every other arm the largest size that is not larger than the pick, or a larger one, was measured and does not meet
///     them, or it has the pick's bytes and more KL.
///
/// With a budget alone the largest size of every arm that fits is measured, and kSizesBelow smaller ones of the best arm. The
/// pick is that of measuring everything where KL falls strictly with the size in every arm.
///
/// With min_exact_match every candidate within the budget is measured. Of those that meet the other limits the frontier of
/// bytes and KL is bisected by exact match: larger candidates of it are taken to answer as well or better. The pick answers well
/// enough, and the next kSizesBelow smaller ones of the frontier do not.
///
/// Calls depend on the arguments and earlier results alone: a caller who remembers results can go on after an interruption.
/// @throws UsageError when no limit is set or there is no arm.
SearchResult search(const std::vector<SearchArm>& arms, const SearchOptions& options, const SearchFunctions& functions);

/// What it costs to prune one layer and leave the others whole.
struct LayerCurve {
  int layer = 0;               ///< absolute id
  std::vector<int> counts;     ///< experts kept, ascending; the last is all of them
  std::vector<double> costs;   ///< parallel; 0 for all
};

/// Costs of other counts, on straight lines between those of the curve.
/// @param counts  within the curve's.
std::vector<double> interpolate(const LayerCurve& curve, std::span<const int> counts);

/// XXH3-128, in hex, of what a plan does: equal for plans that keep the same, whatever chose it.
std::string plan_digest(const Plan& plan);

}  // namespace moetrim
