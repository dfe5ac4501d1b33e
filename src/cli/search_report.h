// What a search prints.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/search_arms.h"

namespace moetrim::cli {

/// "max-kl 0.1 and budget-bytes 1000".
std::string describe_limits(const SearchLimits& limits);
/// "16 experts, 0.75 of their atoms".
std::string describe_size(const SearchSize& size);
/// The options of the size's plan.
nlohmann::ordered_json size_json(const SearchSize& size);
/// The result's candidates by size, * those on the frontier, > the pick.
std::string search_table(const nlohmann::ordered_json& result, const SearchLimits& limits);

/// What a search takes at most, where quality falls with the size.
struct SearchExtent {
  std::size_t candidates = 0;
  std::size_t curve_points = 0;
  std::size_t calls = 0;   ///< evaluations of up to so many plans, curves included
};
/// @param arms  uniform_arms() of the search. @param layers  MoE layers that are evaluated. @param at_once  plans that share a pass
SearchExtent search_extent(const SearchFlags& search, const std::vector<PlannedArm>& arms, const RouterLimits& limits, int layers,
                           std::size_t at_once, bool all);

}  // namespace moetrim::cli
