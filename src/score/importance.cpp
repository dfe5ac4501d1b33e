// Sums of an atomic expert to its importance for the loss.
#include "score/importance.h"

#include <cstddef>

namespace moetrim {
namespace {

std::size_t size(int value) { return static_cast<std::size_t>(value); }

/// @param n  above zero
double raw_importance(Importance importance, double activation, double gradient, double joint, double n) {
  switch (importance) {
    case Importance::mean: return (activation / n) * (gradient / n);
    case Importance::sum: return activation * (gradient / n);
    case Importance::joint: return joint;
  }
  return 0;
}

}  // namespace

double predicted_tokens(const StatisticsManifest& manifest, int task) {
  return static_cast<double>(manifest.tasks.at(size(task)).predicted_tokens);
}

std::vector<double> atom_importance(Importance importance, const StatisticsManifest& manifest, const AtomStatistics& atoms,
                                    int task) {
  const double predicted = predicted_tokens(manifest, task);
  std::vector<double> scores(size(atoms.experts) * size(atoms.width), 0.0);
  if (predicted == 0) return scores;
  const std::size_t begin = size(task) * scores.size();
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const double n = atoms.tokens[size(task) * size(atoms.experts) + i / size(atoms.width)];
    if (n == 0) continue;
    const std::size_t place = begin + i;
    scores[i] = raw_importance(importance, atoms.activation[place], atoms.gradient[place], atoms.joint[place], n) /
                (predicted * predicted);
  }
  return scores;
}

std::vector<double> expert_importance(Importance importance, const StatisticsManifest& manifest, const AtomStatistics& atoms,
                                      int task) {
  const auto of_atoms = atom_importance(importance, manifest, atoms, task);
  std::vector<double> scores(size(atoms.experts), 0.0);
  for (std::size_t i = 0; i < of_atoms.size(); ++i) scores[i / size(atoms.width)] += of_atoms[i];
  return scores;
}

std::vector<double> divided_total(const AtomStatistics& atoms, const std::vector<double>& values, int task, double divisor) {
  std::vector<double> total(size(atoms.experts), 0.0);
  if (divisor == 0) return total;
  const double* of_task = values.data() + size(task) * kSlices * total.size();
  for (std::size_t i = 0; i < kSlices * total.size(); ++i) total[i % total.size()] += of_task[i];
  for (double& value : total) value /= divisor;
  return total;
}

}  // namespace moetrim
