// Scores of atomic experts to an order in which they stay.
#include "plan/atom_ranking.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace moetrim {
namespace {

constexpr double kMost = std::numeric_limits<double>::max();
constexpr double kBeforeAll = std::numeric_limits<double>::infinity();  // no sum of scores is: see add_steps

}  // namespace

AtomRanking::AtomRanking(std::vector<RankedExpert> experts, std::size_t pool_size, int block, int step)
    : experts_(std::move(experts)), pool_size_(pool_size), width_(static_cast<int>(experts_.front().scores.size())),
      block_(block), step_(step), steps_(width_ / step_ + (width_ % step_ != 0 ? 1 : 0)) {
  ranked_.reserve(experts_.size() * static_cast<std::size_t>(steps_));
  for (std::size_t e = 0; e < experts_.size(); ++e) add_steps(e);
  const auto pool = static_cast<std::ptrdiff_t>(pool_size_) * steps_;
  for (auto begin = ranked_.begin(); begin != ranked_.end(); begin += pool) {
    std::sort(begin, begin + pool, [](const Step& a, const Step& b) {
      return a.score != b.score ? a.score > b.score : a.place < b.place;
    });
  }
}

std::vector<double> AtomRanking::block_sums(std::span<const double> scores) const {
  std::vector<double> sums;
  for (std::size_t begin = 0; begin < scores.size(); begin += static_cast<std::size_t>(block_)) {
    const auto block = scores.subspan(begin, std::min(static_cast<std::size_t>(block_), scores.size() - begin));
    sums.push_back(std::accumulate(block.begin(), block.end(), 0.0));
  }
  return sums;
}

std::vector<int> AtomRanking::ordered_blocks(std::span<const double> sums) const {
  std::vector<int> ids(sums.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.begin() + width_ / block_, [&](int a, int b) {
    return sums[static_cast<std::size_t>(a)] > sums[static_cast<std::size_t>(b)];
  });
  return ids;
}

/// A step never scores more than the one before it, so that sorting all steps keeps each expert's in their order.
void AtomRanking::add_steps(std::size_t expert) {
  const auto sums = block_sums(experts_[expert].scores);
  const auto order = ordered_blocks(sums);
  const auto blocks = static_cast<std::size_t>(step_ / block_);
  double before = kMost;
  for (int number = 0; number < steps_; ++number) {
    const std::size_t begin = static_cast<std::size_t>(number) * blocks;
    const std::size_t end = std::min(begin + blocks, order.size());
    double sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += sums[static_cast<std::size_t>(order[i])];
    before = std::min(sum, before);
    ranked_.push_back({experts_[expert].whole ? kBeforeAll : before, static_cast<std::int64_t>(expert) * steps_ + number});
  }
}

int AtomRanking::step_size(std::int64_t place) const {
  return place % steps_ == steps_ - 1 ? width_ - (steps_ - 1) * step_ : step_;
}

std::int64_t AtomRanking::pool_atoms() const { return static_cast<std::int64_t>(pool_size_) * width_; }

std::int64_t AtomRanking::least() const {
  std::int64_t most_whole = 0;
  for (auto pool = experts_.begin(); pool != experts_.end(); pool += static_cast<std::ptrdiff_t>(pool_size_)) {
    most_whole = std::max<std::int64_t>(most_whole, std::count_if(pool, pool + static_cast<std::ptrdiff_t>(pool_size_),
                                                                  [](const RankedExpert& expert) { return expert.whole; }));
  }
  return std::max<std::int64_t>(most_whole * width_, std::min(step_, width_));
}

std::vector<int> AtomRanking::widths(std::int64_t target) const {
  std::vector<int> widths(experts_.size(), 0);
  const std::size_t pool = pool_size_ * static_cast<std::size_t>(steps_);
  for (std::size_t begin = 0; begin < ranked_.size(); begin += pool) {
    std::int64_t room = target;
    for (const Step& step : std::span(ranked_).subspan(begin, pool)) {
      const int size = step_size(step.place);
      room -= size;
      if (room < 0) break;
      widths[static_cast<std::size_t>(step.place / steps_)] += size;
    }
  }
  return widths;
}

AtomRanges AtomRanking::ranges(std::size_t expert, int width) const {
  if (width == width_) return {{0, width_}};
  auto blocks = ordered_blocks(block_sums(experts_[expert].scores));
  blocks.resize(static_cast<std::size_t>(width / block_));
  std::sort(blocks.begin(), blocks.end());
  AtomRanges ranges;
  for (const int block : blocks) {
    const AtomRange range{block * block_, (block + 1) * block_};
    if (!ranges.empty() && ranges.back().end == range.begin) {
      ranges.back().end = range.end;
    } else {
      ranges.push_back(range);
    }
  }
  return ranges;
}

}  // namespace moetrim
