// Which candidates to measure next, and which one to pick.
#include "moetrim/search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "moetrim/error.h"

namespace moetrim {
namespace {

/// Sizes of an arm between the largest that fails and the smallest that passes, both exclusive.
struct Open {
  std::size_t begin = 0;
  std::size_t end = 0;

  std::size_t size() const { return end > begin ? end - begin : 0; }
};

/// `count` sizes that cut an open range into equal parts.
void add_points(const Open& open, std::size_t count, std::size_t arm, std::vector<Candidate>& out) {
  for (std::size_t i = 1; i <= count; ++i) out.push_back({arm, open.begin + i * (open.size() + 1) / (count + 1) - 1});
}

class Searcher {
 public:
  Searcher(const std::vector<SearchArm>& arms, const SearchOptions& options, const SearchFunctions& functions)
      : arms_(arms), options_(options), limits_(options.limits), functions_(functions) {}

  SearchResult run() {
    for (auto request = next(); !request.empty(); request = next()) measure(request);
    if (limits_.min_exact_match) {
      bisect_frontier();
    } else {
      result_.pick = best();
    }
    if (!result_.pick) result_.nearest = nearest();
    result_.frontier = frontier([](const Candidate&) { return true; });
    return std::move(result_);
  }

 private:
  std::uint64_t bytes(const Candidate& c) const { return arms_[c.arm].bytes[c.size]; }
  double kl(const Candidate& c) const { return result_.measured.at(c).kl; }
  bool fits(const Candidate& c) const { return !limits_.budget_bytes || bytes(c) <= *limits_.budget_bytes; }
  bool meets(const Candidate& c) const {
    const Quality& quality = result_.measured.at(c);
    return (!limits_.max_kl || quality.kl <= *limits_.max_kl) &&
           (!limits_.max_loss_increase || quality.loss_increase <= *limits_.max_loss_increase);
  }

  void measure(const std::vector<Candidate>& request) {
    const auto qualities = functions_.measure(request);
    const auto number = [](double value) { return std::isnan(value) ? std::numeric_limits<double>::infinity() : value; };
    for (std::size_t i = 0; i < request.size(); ++i) {
      result_.measured[request[i]] = {.kl = number(qualities.at(i).kl), .loss_increase = number(qualities[i].loss_increase)};
    }
  }

  /// Of those measured, the one to pick, exact match left aside.
  std::optional<Candidate> best() const {
    std::optional<Candidate> found;
    const auto key = [&](const Candidate& c) {
      const auto size = static_cast<double>(bytes(c));  // whole numbers below 2^53
      return limits_.quality() ? std::tuple(size, kl(c), c) : std::tuple(kl(c), size, c);
    };
    for (const auto& [candidate, quality] : result_.measured) {
      if (fits(candidate) && meets(candidate) && (!found || key(candidate) < key(*found))) found = candidate;
    }
    return found;
  }

  /// What to measure next, in one call; empty: nothing more.
  std::vector<Candidate> next() const {
    if (options_.all || limits_.min_exact_match) return one_call(every_candidate());
    std::vector<Candidate> request;
    if (limits_.quality()) {
      request = points(/*alone=*/false);
      if (request.empty()) request = points(/*alone=*/true);
    } else {
      request = one_call(largest_that_fit());
    }
    return request.empty() ? one_call(sizes_below()) : request;
  }

  /// The first of these that are not measured yet, as many as go together.
  std::vector<Candidate> one_call(const std::vector<Candidate>& wanted) const {
    std::vector<Candidate> together, alone;
    for (const Candidate& c : wanted) {
      if (!result_.measured.contains(c)) (arms_[c.arm].alone ? alone : together).push_back(c);
    }
    auto& chosen = together.empty() ? alone : together;
    chosen.resize(std::min(chosen.size(), together.empty() ? 1 : options_.at_once));
    return chosen;
  }

  std::vector<Candidate> every_candidate() const {
    std::vector<Candidate> wanted;
    for (std::size_t arm = 0; arm < arms_.size(); ++arm) {
      for (std::size_t size = 0; size < arms_[arm].bytes.size(); ++size) {
        if (options_.all || fits({arm, size})) wanted.push_back({arm, size});
      }
    }
    return wanted;
  }

  std::vector<Candidate> largest_that_fit() const {
    std::vector<Candidate> wanted;
    for (std::size_t arm = 0; arm < arms_.size(); ++arm) {
      const std::size_t end = sizes_within(arm, *limits_.budget_bytes);
      if (end > 0) wanted.push_back({arm, end - 1});
    }
    return wanted;
  }

  std::vector<Candidate> sizes_below() const {
    std::vector<Candidate> wanted;
    const auto top = best();
    for (std::size_t i = 1; top && i <= std::min(kSizesBelow, top->size); ++i) wanted.push_back({top->arm, top->size - i});
    return wanted;
  }

  /// How many sizes of an arm have that many bytes or fewer.
  std::size_t sizes_within(std::size_t arm, std::uint64_t most) const {
    const auto& sizes = arms_[arm].bytes;
    return static_cast<std::size_t>(std::upper_bound(sizes.begin(), sizes.end(), most) - sizes.begin());
  }

  /// Sizes that could still be the pick, if the arm's measures fall with the size.
  Open open_sizes(std::size_t arm, std::uint64_t most) const {
    Open open{.begin = 0, .end = arms_[arm].bytes.size()};
    for (std::size_t size = 0; size < open.end; ++size) {
      const Candidate c{arm, size};
      if (!result_.measured.contains(c)) continue;
      if (meets(c)) {
        open.end = size;
      } else {
        open.begin = size + 1;
      }
    }
    open.end = std::min(open.end, sizes_within(arm, most));
    return open;
  }

  /// Points of the arms that are still open, dealt one by one; of arms that are measured alone, a single point.
  std::vector<Candidate> points(bool alone) const {
    std::uint64_t most = limits_.budget_bytes.value_or(std::numeric_limits<std::uint64_t>::max());
    if (const auto found = best()) most = std::min(most, bytes(*found));
    std::vector<Open> open(arms_.size());
    for (std::size_t arm = 0; arm < arms_.size(); ++arm) {
      if (arms_[arm].alone == alone) open[arm] = open_sizes(arm, most);
    }
    std::vector<std::size_t> counts(arms_.size(), 0);
    std::size_t left = alone ? 1 : options_.at_once;
    for (bool dealt = true; dealt && left > 0;) {
      dealt = false;
      for (std::size_t arm = 0; arm < arms_.size() && left > 0; ++arm) {
        if (counts[arm] == open[arm].size()) continue;
        ++counts[arm];
        --left;
        dealt = true;
      }
    }
    std::vector<Candidate> out;
    for (std::size_t arm = 0; arm < arms_.size(); ++arm) add_points(open[arm], counts[arm], arm, out);
    return out;
  }

  /// Of the measured candidates that `which` takes, those without a smaller one that has as little KL.
  template <class Which>
  std::vector<Candidate> frontier(Which which) const {
    std::vector<Candidate> sorted, out;
    for (const auto& [candidate, quality] : result_.measured) {
      if (which(candidate)) sorted.push_back(candidate);
    }
    std::sort(sorted.begin(), sorted.end(), [&](const Candidate& a, const Candidate& b) {
      return std::tuple(bytes(a), kl(a), a) < std::tuple(bytes(b), kl(b), b);
    });
    for (const Candidate& c : sorted) {
      if (out.empty() || kl(c) < kl(out.back())) out.push_back(c);
    }
    return out;
  }

  bool answers(const Candidate& c) {
    const auto known = result_.exact_match.find(c);
    const double match = known != result_.exact_match.end() ? known->second : functions_.exact_match(c);
    result_.exact_match[c] = match;
    return match >= *limits_.min_exact_match;
  }

  void bisect_frontier() {
    const auto line = frontier([&](const Candidate& c) { return fits(c) && meets(c); });
    Open open{.begin = 0, .end = line.size()};
    const auto look_at = [&](std::size_t at) {
      if (answers(line[at])) {
        open.end = at;
      } else {
        open.begin = at + 1;
      }
    };
    while (open.size() > 0) look_at(open.begin + open.size() / 2);
    if (open.end == line.size()) return;
    for (std::size_t below = 1; below <= std::min(kSizesBelow, open.end);) {
      const std::size_t end = open.end;
      look_at(end - below);
      below = open.end < end ? 1 : below + 1;
    }
    result_.pick = line[open.end];
  }

  std::optional<Candidate> nearest() const {
    std::optional<Candidate> found;
    const auto key = [&](const Candidate& c) {
      const auto match = result_.exact_match.find(c);
      const double wrong = match == result_.exact_match.end() ? 1 : 1 - match->second;
      const double increase = limits_.max_kl ? 0 : result_.measured.at(c).loss_increase;
      return std::tuple(wrong, increase, kl(c), bytes(c), c);
    };
    for (const auto& [candidate, quality] : result_.measured) {
      if (fits(candidate) && (!found || key(candidate) < key(*found))) found = candidate;
    }
    return found;
  }

  const std::vector<SearchArm>& arms_;
  const SearchOptions& options_;
  const SearchLimits& limits_;
  const SearchFunctions& functions_;
  SearchResult result_;
};

}  // namespace

SearchResult search(const std::vector<SearchArm>& arms, const SearchOptions& options, const SearchFunctions& functions) {
  if (arms.empty()) throw UsageError("nothing to search: no method and no merging is given");
  if (!options.limits.quality() && !options.limits.budget_bytes) {
    throw UsageError("nothing says what to look for; add --max-kl, --max-loss-increase, --min-exact-match or --budget-bytes");
  }
  return Searcher(arms, options, functions).run();
}

}  // namespace moetrim
