// Groups of a router: what must hold between them and the experts, and their JSON form.
#include "moetrim/statistics.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/json_fields.h"

namespace moetrim {

int least_per_group(const RouterGroups& groups, int experts_per_token) {
  const int scored = groups.rule == "top2" ? 2 : 1;  // loaders take the top 2 of every group, and fail where one has less
  const int chosen = std::max(groups.chosen, 1);
  return std::max(scored, experts_per_token / chosen + (experts_per_token % chosen != 0 ? 1 : 0));
}

std::string router_groups_problem(const RouterGroups& groups, int experts, int experts_per_token) {
  const auto& [count, chosen, rule] = groups;
  if (count < 1) return fmt::format("expected at least one group, got {}", count);
  if (rule == "none" && count > 1) return fmt::format("{} groups need a rule: max, top2 or each", count);
  if (experts % count != 0) return fmt::format("{} experts cannot be divided into {} groups of equal size", experts, count);
  if (chosen < 1 || chosen > count) return fmt::format("expected 1 to {} chosen groups, got {}", count, chosen);
  if (rule == "each" && chosen != count) {
    return fmt::format("rule each takes experts from all {} groups, got {} chosen ones", count, chosen);
  }
  if (rule == "each" && experts_per_token % count != 0) {
    return fmt::format("rule each takes the same number of experts from each of {} groups, but {} per token do not divide by it",
                       count, experts_per_token);
  }
  const int least = least_per_group(groups, experts_per_token);
  if (experts / count >= least) return {};
  return fmt::format("{} experts per token from {} of {} groups (rule {}) need at least {} experts in a group, there are {}",
                     experts_per_token, chosen, count, rule, least, experts / count);
}

nlohmann::ordered_json router_groups_to_json(const RouterGroups& groups) {
  return {{"count", groups.count}, {"chosen", groups.chosen}, {"rule", groups.rule}};
}

RouterGroups router_groups_from_json(const nlohmann::ordered_json& json, const std::filesystem::path& file,
                                     const std::string& where, int experts, int experts_per_token) {
  JsonFields fields(json, file, where);
  RouterGroups groups;
  groups.count = fields.whole("count", 1, experts);
  groups.chosen = fields.whole("chosen", 1, groups.count);
  groups.rule = fields.choice("rule", {"max", "top2", "each"});
  fields.finish();
  const std::string problem = router_groups_problem(groups, experts, experts_per_token);
  if (!problem.empty()) fields.fail("", problem);
  return groups;
}

}  // namespace moetrim
