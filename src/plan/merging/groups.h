// What the merging methods share, private to the stage.
#pragma once

#include <span>
#include <vector>

#include "moetrim/plan.h"

namespace moetrim {

/// Numbers the labels in the order in which they first appear.
std::vector<int> by_first_appearance(std::span<const int> labels);
/// Positions by descending value; of equal ones the lower first.
std::vector<int> descending(std::span<const double> values);

/// Groups of equal labels, each into its member with the largest weight (of equal ones the lower), with weights that sum to
/// 1: those given, or equal ones where all members' are 0.
/// @param labels   [n] by first appearance
/// @param weights  [n] not negative
std::vector<MergeGroup> groups_of(std::span<const int> labels, std::span<const double> weights);
/// The same, into the given members. @param into  [groups], parallel to labels that need not be in order.
std::vector<MergeGroup> groups_into(std::span<const int> labels, std::span<const int> into,
                                    std::span<const double> weights);

}  // namespace moetrim
