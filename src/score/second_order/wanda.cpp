// The norm of an atom's values times the length of its column of down_proj.
// Source: Wanda, arXiv:2306.11695, rates one weight by |W_ij| |x_j|; a whole column j goes or stays here, so the squares of
// that are summed over the output i.
#include <cmath>

#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> activation_times_column(const StatisticsManifest&, const AtomStatistics& atoms, int task,
                                            const ScoreOptions&) {
  const double* activation = atoms.activation.data() + static_cast<std::size_t>(task) * atoms.down_squares.size();
  std::vector<double> scores;
  for (std::size_t i = 0; i < atoms.down_squares.size(); ++i) {
    scores.push_back(std::sqrt(activation[i]) * std::sqrt(atoms.down_squares[i]));
  }
  return scores;
}

}  // namespace

const ScoringMethod wanda{
    .name = "wanda",
    .source = "Wanda's rule, arXiv:2306.11695, for a whole column of down_proj: root of its squares summed over the output",
    .unit = "norm of values x length of column",
    .official = "",
    .second_order = activation_times_column,
    .grain = Grain::atom,
};

}  // namespace moetrim::methods
