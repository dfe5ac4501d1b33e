// Windows and caches over one layer's trace.
// Source: Liang et al., arXiv:2505.16056, and the code beside it: SRP and SCH.
#include "report/segments.h"

#include <algorithm>
#include <compare>
#include <utility>

namespace moetrim {
namespace {

/// Uses of every expert in the window that ends at a token; a count is booked for all windows it held for when it changes.
class WindowCounter {
 public:
  WindowCounter(int experts, int window, std::vector<UseCounts>& by_expert, UseCounts& all)
      : window_(window), uses_(static_cast<std::size_t>(experts)), since_(uses_.size()), by_expert_(by_expert), all_(all) {}

  void change(std::int32_t expert, int by, std::int64_t at) {
    book(static_cast<std::size_t>(expert), at);
    uses_[static_cast<std::size_t>(expert)] += by;
  }
  void finish(std::int64_t at) {
    for (std::size_t e = 0; e < uses_.size(); ++e) book(e, at);
  }

 private:
  /// The count held for windows that end at tokens [since, at), the first of which is whole at window - 1.
  void book(std::size_t expert, std::int64_t at) {
    const std::int64_t windows = at - std::max<std::int64_t>(since_[expert], window_ - 1);
    since_[expert] = at;
    if (windows <= 0) return;
    by_expert_[expert][static_cast<std::size_t>(uses_[expert])] += windows;
    all_[static_cast<std::size_t>(uses_[expert])] += windows;
  }

  int window_;
  std::vector<int> uses_;
  std::vector<std::int64_t> since_;
  std::vector<UseCounts>& by_expert_;
  UseCounts& all_;
};

void count_sequence(std::span<const std::int32_t> ids, int top_k, TraceSequence sequence, int window,
                    WindowCounter& counter) {
  const auto token = [&](std::int64_t t) {
    return ids.subspan(static_cast<std::size_t>((sequence.begin + t) * top_k), static_cast<std::size_t>(top_k));
  };
  const std::int64_t length = sequence.end - sequence.begin;
  for (std::int64_t t = 0; t < length; ++t) {
    for (const std::int32_t expert : token(t)) counter.change(expert, 1, t);
    if (t < window) continue;
    for (const std::int32_t expert : token(t - window)) counter.change(expert, -1, t);
  }
  counter.finish(length);
}

/// What a cache would rather keep: more uses among the next tokens, then a later last use.
struct Priority {
  std::int64_t coming = 0;
  std::int64_t last = 0;

  auto operator<=>(const Priority&) const = default;
};

/// Caches of all sizes at once: the first c of the stack are what a cache of c holds (Mattson et al., IBM Systems Journal 9,
/// 1970). An expert that is used comes to the top, and on its way down every place keeps the better of two.
class CacheStack {
 public:
  explicit CacheStack(int experts) : priority_(static_cast<std::size_t>(experts)) {}

  /// Place in the stack: caches of more experts than that have it. held() where it was never used.
  std::size_t rank(std::int32_t expert) const {
    return static_cast<std::size_t>(std::find(stack_.begin(), stack_.end(), expert) - stack_.begin());
  }
  std::size_t held() const { return stack_.size(); }
  void expect(std::int32_t expert) { ++priority_[static_cast<std::size_t>(expert)].coming; }

  void use(std::int32_t expert) {
    const std::size_t place = rank(expert);
    if (place == stack_.size()) stack_.push_back(expert);
    std::int32_t pushed = expert;
    for (std::size_t i = 0; i < place; ++i) {
      if (i == 0 || better(pushed, stack_[i])) std::swap(pushed, stack_[i]);
    }
    stack_[place] = pushed;
    Priority& own = priority_[static_cast<std::size_t>(expert)];
    --own.coming;
    own.last = ++clock_;
  }

 private:
  bool better(std::int32_t a, std::int32_t b) const {
    return priority_[static_cast<std::size_t>(a)] > priority_[static_cast<std::size_t>(b)];
  }

  std::vector<Priority> priority_;
  std::vector<std::int32_t> stack_;
  std::int64_t clock_ = 0;
};

}  // namespace

std::vector<UseCounts> count_windows(std::span<const std::int32_t> ids, int experts, int experts_per_token,
                                     const std::vector<TraceSequence>& sequences, int window,
                                     std::vector<UseCounts>& by_sequence) {
  std::vector<UseCounts> by_expert(static_cast<std::size_t>(experts), UseCounts(static_cast<std::size_t>(window) + 1));
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    if (sequences[s].end - sequences[s].begin < window) continue;
    WindowCounter counter(experts, window, by_expert, by_sequence[s]);
    count_sequence(ids, experts_per_token, sequences[s], window, counter);
  }
  return by_expert;
}

SegmentRouting best_threshold(const UseCounts& counts) {
  const auto window = static_cast<double>(counts.size() - 1);
  double used = 0;
  for (std::size_t c = 0; c < counts.size(); ++c) used += static_cast<double>(c) * static_cast<double>(counts[c]);
  SegmentRouting best;
  if (used == 0) return best;
  double matched = 0;
  double held = 0;
  for (std::size_t p = counts.size() - 1; p >= 1; --p) {
    matched += static_cast<double>(p) * static_cast<double>(counts[p]);
    held += window * static_cast<double>(counts[p]);
    const double f1 = 2 * matched / (held + used);
    if (f1 >= best.srp) best = {.srp = f1, .threshold = static_cast<int>(p), .held = held / used};
  }
  return best;
}

std::vector<std::int64_t> cache_ranks(std::span<const std::int32_t> ids, int experts, int experts_per_token,
                                      TraceSequence sequence, int window) {
  const auto token = [&](std::int64_t t) {
    return ids.subspan(static_cast<std::size_t>((sequence.begin + t) * experts_per_token),
                       static_cast<std::size_t>(experts_per_token));
  };
  const std::int64_t length = sequence.end - sequence.begin;
  std::vector<std::int64_t> ranks(static_cast<std::size_t>(experts));
  CacheStack cache(experts);
  for (std::int64_t t = 0; t < std::min<std::int64_t>(window, length); ++t) {
    for (const std::int32_t expert : token(t)) cache.expect(expert);
  }
  for (std::int64_t t = 0; t < length; ++t) {
    std::size_t room = cache.held();
    for (const std::int32_t expert : token(t)) {
      const std::size_t rank = cache.rank(expert);
      ++ranks[rank < cache.held() ? rank : room++];  // a first use is a hit where the cache has room
    }
    for (const std::int32_t expert : token(t)) cache.use(expert);
    if (t + window >= length) continue;
    for (const std::int32_t expert : token(t + window)) cache.expect(expert);
  }
  return ranks;
}

}  // namespace moetrim
