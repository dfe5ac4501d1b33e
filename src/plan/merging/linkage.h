// Agglomerative clustering, private to the stage.
#pragma once

#include <vector>

#include "moetrim/merging.h"

namespace moetrim {

/// Merges the closest pair of clusters until `count` are left; of equal pairs the first in row-major order, a cluster being
/// where its lowest member is. Textbook linkages, as scipy.cluster.hierarchy.linkage has them.
/// @param distances  [n, n], symmetric; Euclidean for ward.
/// @return [n] labels 0 to count - 1, by first appearance.
std::vector<int> cluster(std::vector<double> distances, int n, int count, Linkage linkage);

}  // namespace moetrim
