// Builders of small second-order statistics for tests: from routed tokens by hand, the worked example, or random.
#pragma once

#include <array>
#include <utility>
#include <vector>

#include "given.h"

namespace moetrim::given {

inline constexpr std::array kAtomFields{&AtomStatistics::tokens,   &AtomStatistics::activation,   &AtomStatistics::gradient,
                                        &AtomStatistics::joint,    &AtomStatistics::taylor,       &AtomStatistics::fisher,
                                        &AtomStatistics::down_squares, &AtomStatistics::gate_up_squares};

/// A token at one expert: the atoms' values x and their gradients c, gate weight included.
struct RoutedToken {
  int expert = 0;
  std::vector<double> x{};
  std::vector<double> c{};
  int task = 0;
  int slice = 0;
};

/// Plain double loops after the definitions in statistics.h; all weights have length 1.
inline AtomStatistics atoms(int id, int tasks, int experts, int width, const std::vector<RoutedToken>& tokens) {
  AtomStatistics result(id, tasks, experts, width);
  for (const RoutedToken& token : tokens) {
    const auto expert = static_cast<std::size_t>(token.task * experts + token.expert);
    result.tokens[expert] += 1;
    double change = 0;  // gT o, which is c x summed over the atoms
    for (std::size_t k = 0; k < token.x.size(); ++k) {
      const std::size_t atom = expert * static_cast<std::size_t>(width) + k;
      const double x = token.x[k];
      const double c = token.c[k];
      result.activation[atom] += x * x;
      result.gradient[atom] += c * c;
      result.joint[atom] += x * x * c * c;
      change += x * c;
    }
    const auto sliced = static_cast<std::size_t>((token.task * kSlices + token.slice) * experts + token.expert);
    result.taylor[sliced] += change;
    result.fisher[sliced] += change * change;
  }
  result.down_squares.assign(result.down_squares.size(), 1.0);
  result.gate_up_squares = result.down_squares;
  return result;
}

/// The worked example of HEAPr's method card: 3 experts of 2 atoms, the last never routed; its down_proj columns have squared
/// lengths 2, 1 / 1, 5. 16 and 4 are the squares of the rows of gate_proj and up_proj.
inline AtomStatistics heapr_example(int id = 0) {
  AtomStatistics result = atoms(id, 1, 3, 2,
                                {{.expert = 0, .x = {1, 2}, .c = {1, 0}, .slice = 0},
                                 {.expert = 0, .x = {3, 0}, .c = {2, -2}, .slice = 1},
                                 {.expert = 1, .x = {2, 1}, .c = {1, 1}, .slice = 1}});
  result.down_squares = {2, 1, 1, 5, 0, 9};
  result.gate_up_squares = {14, 3, 15, 4, 4, 16};
  return result;
}

/// Puts second-order statistics beside first-order ones. Every token that was run is predicted.
inline Statistics with_atoms(Statistics statistics, std::vector<AtomStatistics> list) {
  statistics.manifest.expert_width = list.front().width;
  for (auto& task : statistics.manifest.tasks) {
    task.predicted_tokens = task.counted_tokens;
    task.loss = 2.5 * static_cast<double>(task.predicted_tokens);
  }
  statistics.atoms = std::move(list);
  return statistics;
}

inline AtomStatistics random_atoms(int id, int tasks, int experts, int width, unsigned seed) {
  std::mt19937_64 bits(seed);
  const auto uniform = [&] { return static_cast<double>(bits() >> 11U) * 0x1p-53; };
  std::vector<RoutedToken> tokens;
  for (int t = 0; t < 5 * experts * tasks; ++t) {
    const int expert = static_cast<int>(bits() % static_cast<unsigned>(experts));
    RoutedToken token{.expert = expert, .task = t % tasks, .slice = t % kSlices};
    for (int k = 0; k < width; ++k) {
      token.x.push_back(2 * uniform() - 1);
      token.c.push_back(2 * uniform() - 1);
    }
    tokens.push_back(token);
  }
  AtomStatistics result = atoms(id, tasks, experts, width, tokens);
  for (double& value : result.down_squares) value = uniform();
  for (double& value : result.gate_up_squares) value = uniform();
  return result;
}

/// First- and second-order statistics of `layers` layers.
inline Statistics random_second_order(int layers, int experts, int width, int tasks = 1, unsigned seed = 1) {
  Statistics statistics = random_statistics(layers, experts, 2, tasks, seed);
  for (auto& task : statistics.manifest.tasks) task.tokens = 1000;  // more were run than counted
  std::vector<AtomStatistics> list;
  for (int i = 0; i < layers; ++i) {
    list.push_back(random_atoms(i, tasks, experts, width, seed + 100U * static_cast<unsigned>(i)));
  }
  return with_atoms(std::move(statistics), std::move(list));
}

/// Block `i` of the result is block order[i] of the source.
inline std::vector<double> reordered(const std::vector<double>& source, const std::vector<int>& order) {
  const std::size_t length = source.size() / order.size();
  std::vector<double> result;
  for (const int from : order) {
    const auto begin = source.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(from) * length);
    result.insert(result.end(), begin, begin + static_cast<std::ptrdiff_t>(length));
  }
  return result;
}

/// Expert i of the result is expert order[i] of the source, which has one task.
inline AtomStatistics reordered(const AtomStatistics& source, const std::vector<int>& order) {
  AtomStatistics result = source;
  for (const auto member : kAtomFields) {
    if (member != &AtomStatistics::taylor && member != &AtomStatistics::fisher) {
      result.*member = reordered(source.*member, order);
      continue;
    }
    (result.*member).clear();  // slice by slice
    for (auto slice = (source.*member).begin(); slice != (source.*member).end(); slice += source.experts) {
      const auto part = reordered(std::vector<double>(slice, slice + source.experts), order);
      (result.*member).insert((result.*member).end(), part.begin(), part.end());
    }
  }
  return result;
}

}  // namespace moetrim::given
