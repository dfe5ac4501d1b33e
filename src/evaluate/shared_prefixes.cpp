// Plans that agree on the first layers run them once.

#include "evaluate/shared_prefixes.h"

#include <algorithm>
#include <numeric>

namespace moetrim {

namespace {

/// Where a plan leaves another one, -1 being the model.
struct Fork {
  int from = -1;
  int layer = 0;
};

int first_difference(const ExpertMask& a, const ExpertMask& b) {
  return static_cast<int>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

/// Only plans before it: those after it leave it where they differ. A plan that begins at the layer found or later agrees until
/// then with the one that it left, which is earlier and so was taken.
Fork fork_of(std::span<const ExpertMask> masks, std::size_t plan) {
  Fork best{.from = -1, .layer = first_difference(masks[plan], ExpertMask(masks[plan].size()))};
  for (std::size_t other = 0; other < plan; ++other) {
    const int layer = first_difference(masks[plan], masks[other]);
    if (layer > best.layer) best = {static_cast<int>(other), layer};
  }
  return best;
}

}  // namespace

SharedPass share_prefixes(std::span<const ExpertMask> masks) {
  std::vector<Fork> forks;
  for (std::size_t plan = 0; plan < masks.size(); ++plan) forks.push_back(fork_of(masks, plan));
  std::vector<std::size_t> order(masks.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return forks[a].layer < forks[b].layer; });
  SharedPass pass{.copies = {Copy{}}, .copy_of = std::vector<int>(masks.size())};
  for (const std::size_t plan : order) {
    const Fork& fork = forks[plan];
    const int from = fork.from < 0 ? 0 : pass.copy_of[static_cast<std::size_t>(fork.from)];
    if (fork.layer == static_cast<int>(masks[plan].size())) {
      pass.copy_of[plan] = from;
      continue;
    }
    pass.copy_of[plan] = static_cast<int>(pass.copies.size());
    pass.copies.push_back({.from = from, .layer = fork.layer, .plan = static_cast<int>(plan)});
  }
  return pass;
}

}  // namespace moetrim
