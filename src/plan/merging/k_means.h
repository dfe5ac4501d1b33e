// k-means without chance, private to the stage.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace moetrim {

/// Lloyd's k-means in as many dimensions as clusters. The first centre is a given point, every further one the point that is
/// farthest from those before it; ties go to the lower id. A cluster that loses all its points takes the one that is
/// farthest from its own centre, so there are always `count`.
/// @param points  [n, count]
/// @return [n] labels 0 to count - 1, by first appearance.
std::vector<int> k_means(std::span<const double> points, std::size_t n, std::size_t count, std::size_t first);

}  // namespace moetrim
