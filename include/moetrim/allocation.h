// How many experts every layer keeps, when what each number costs is known: the exact optimum of a separable cost.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moetrim {

/// One of `counts` for every layer, so that the costs add up to the least possible with at most `total` experts in all layers
/// together: a multiple-choice knapsack, solved exactly by dynamic programming over what is left of the total.
///
/// Of several optima the one whose index is smallest in the lowest layer where they differ. Takes time layers x units x
/// counts and layers x units bytes, where units are experts above the smallest counts, in steps of the greatest common
/// divisor of the differences of `counts`: at most min(total, layers x largest count) / divisor.
/// @param costs   [layers][counts] of keeping counts[i] experts in a layer; infinity: the layer cannot keep that many.
/// @param counts  above 0, ascending, at most 256; the same for all layers.
/// @return [layers] index into `counts`. No layers: empty.
/// @throws UsageError for counts or costs that are not as above (NaN and minus infinity are not costs).
/// @throws InvalidInput naming the least total that works when the layers need more than `total`, or the layer that can keep
///         none of the numbers.
std::vector<int> allocate(std::span<const std::vector<double>> costs, std::span<const int> counts, std::int64_t total);

}  // namespace moetrim
