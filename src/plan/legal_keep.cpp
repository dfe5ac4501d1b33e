// Which numbers of experts a layer can keep, so that the router of the new checkpoint works as before.
// What a group must hold is the same before and after: least_per_group() with the experts that are left.
#include "plan/legal_keep.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {
namespace {

void check_regroup(const RouterGroups& groups) {
  if (groups.count == 1) throw InvalidInput("regroup: the router has no groups of experts; leave it out");
  if (groups.rule != "each") return;
  throw InvalidInput(fmt::format("regroup: the router takes the same number of experts from each of {} groups (rule each), and "
                                 "with one group it would take others; only rules max and top2 can be regrouped",
                                 groups.count));
}

/// What the router takes, which is what every group must have ready.
std::string needs(const RouterLimits& limits) {
  const auto& groups = limits.groups;
  if (groups.rule == "each") {
    return fmt::format("the router takes {} from each of {} groups (rule each)", limits.experts_per_token / groups.count,
                       groups.count);
  }
  const bool by_score = groups.rule == "top2" && limits.experts_per_token <= groups.chosen;  // one would do for the token
  return fmt::format("the router takes {} from {} of {} groups (rule {}{})", limits.experts_per_token, groups.chosen,
                     groups.count, groups.rule, by_score ? ", which adds up two of a group" : "");
}

std::string nearest(const LegalCounts& counts, int keep) {
  if (counts.step == 1 || keep < counts.least) return fmt::format("the smallest keep that works is {}", counts.least);
  const int below = keep / counts.step * counts.step;
  return fmt::format("the nearest that work are {} and {}", below, below + counts.step);
}

/// The first group that has more protected experts than it keeps. @return empty when all have room
std::string crowd_problem(const LegalCounts& counts, int keep, const std::vector<ProtectedCount>& protection) {
  for (const auto& [layer, group, count] : protection) {
    if (count <= keep / counts.step) continue;
    const std::string where = counts.step == 1 ? "" : fmt::format(", group {}", group);
    return fmt::format("layer {}{} has {} protected experts{}", layer, where, count,
                       counts.step == 1 ? "" : fmt::format(" and keeps {}", keep / counts.step));
  }
  return {};
}

}  // namespace

LegalCounts legal_counts(const RouterLimits& limits, bool regroup) {
  const auto& groups = limits.groups;
  const std::string problem = router_groups_problem(groups, limits.experts, limits.experts_per_token);
  if (!problem.empty()) {
    throw InvalidInput(fmt::format("the router's groups: {}; nothing can be planned for such a checkpoint", problem));
  }
  if (regroup) check_regroup(groups);
  const RouterGroups after = regroup ? RouterGroups{.count = 1, .chosen = 1, .rule = groups.rule} : groups;
  return {.step = after.count,
          .least = after.count * least_per_group(after, limits.experts_per_token),
          .most = limits.experts};
}

std::string keep_problem(const RouterLimits& limits, const LegalCounts& counts, int keep) {
  if (keep >= counts.least && keep <= counts.most && keep % counts.step == 0) return {};
  if (counts.step > 1) {
    return needs(limits) + fmt::format(", so every group must keep the same number, at least {}",
                                               counts.least / counts.step);
  }
  if (limits.experts_per_token < counts.least) return fmt::format("rule {} adds up two experts", limits.groups.rule);
  return fmt::format("a token is routed to {} experts", limits.experts_per_token);
}

int legal_keep(const RouterLimits& limits, const KeepBudget& budget, bool regroup,
               const std::vector<ProtectedCount>& protection) {
  LegalCounts counts = legal_counts(limits, regroup);
  int keep = budget.of(limits.experts, counts.step);
  if (budget.ratio && counts.step > 1) keep = std::max(keep, counts.least);
  if (keep > counts.most) {
    throw InvalidInput(fmt::format("keep {}: a layer has {} experts; keep at most {}", keep, counts.most, counts.most));
  }
  std::string problem = keep_problem(limits, counts, keep);
  if (problem.empty()) problem = crowd_problem(counts, keep, protection);
  for (const auto& crowd : protection) counts.least = std::max(counts.least, counts.step * crowd.count);
  if (!problem.empty()) throw InvalidInput(fmt::format("keep {}: {}; {}", keep, problem, nearest(counts, keep)));
  return keep;
}

int legal_keep(const RouterLimits& limits, const KeepBudget& budget, bool regroup) {
  return legal_keep(limits, budget, regroup, {});
}

}  // namespace moetrim
