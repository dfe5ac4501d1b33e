// The length of all weights of an atomic expert: its column of down_proj and its rows of gate_proj and up_proj.
// Source: the usual baseline; it looks at no token.
#include <cmath>

#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> length_of_weights(const StatisticsManifest&, const AtomStatistics& atoms, int, const ScoreOptions&) {
  std::vector<double> scores;
  for (std::size_t i = 0; i < atoms.down_squares.size(); ++i) {
    scores.push_back(std::sqrt(atoms.down_squares[i] + atoms.gate_up_squares[i]));
  }
  return scores;
}

}  // namespace

const ScoringMethod magnitude{
    .name = "magnitude",
    .source = "baseline: L2 norm of an atomic expert's weights",
    .unit = "length of weights",
    .official = "",
    .second_order = length_of_weights,
    .grain = Grain::atom,
};

}  // namespace moetrim::methods
