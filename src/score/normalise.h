// Scores to a sum of 1, private to the stage.
#pragma once

#include <string_view>
#include <vector>

#include "moetrim/score.h"

namespace moetrim {

using LayerScores = std::vector<std::vector<double>>;  // [layers], each [experts] or [experts, width]

/// Divides by the sum of magnitudes: of experts per layer, of atomic experts over all layers, so that one ranking can still
/// compare them. Zeros stay zeros.
/// @param method  named in errors. @throws InvalidInput when a sum is not finite.
void normalise(LayerScores& layers, Grain grain, std::string_view method);

/// sum += weight * scores; an empty sum takes the scores' shape first.
void add_weighted(LayerScores& sum, double weight, const LayerScores& scores);

}  // namespace moetrim
