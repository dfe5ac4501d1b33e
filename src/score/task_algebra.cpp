// Scores of several tasks to those of one decision.
#include "moetrim/task_algebra.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "score/normalise.h"

namespace moetrim {
namespace {

using Json = nlohmann::ordered_json;

void check_same(const Scores& first, const Scores& other) {
  const auto differs = [](std::string_view what, const auto& a, const auto& b) {
    if (a != b) throw InvalidInput(fmt::format("scores of tasks cannot be put together: they differ in {}", what));
  };
  differs("method", first.method, other.method);
  differs("variant", first.variant, other.variant);
  differs("what is scored", first.grain, other.grain);
  differs("width", first.width, other.width);
  differs("layers", first.layers, other.layers);
  differs("checkpoint", first.source.value("checkpoint_fingerprint", ""), other.source.value("checkpoint_fingerprint", ""));
  for (std::size_t l = 0; l < first.values.size(); ++l) {
    differs("number of experts", first.values[l].size(), other.values.at(l).size());
  }
}

void check_parts(std::span<const Scores> parts, std::span<const double> weights) {
  if (parts.empty() || parts.size() != weights.size()) {
    throw UsageError(
        fmt::format("{} weights for the scores of {} tasks; expected one for each", weights.size(), parts.size()));
  }
  for (const double weight : weights) {
    if (!std::isfinite(weight) || weight <= 0) {
      throw UsageError(fmt::format("weight {}: expected a finite number above zero", weight));
    }
  }
  for (const Scores& part : parts) check_same(parts.front(), part);
}

LayerScores normalised(const Scores& scores) {
  LayerScores values = scores.values;
  normalise(values, scores.grain, scores.method);
  return values;
}

/// The tasks that a source lists, with their weights multiplied.
Json weighted_tasks(const Scores& scores, double weight) {
  Json tasks = scores.source.value("tasks", Json::array());
  for (Json& task : tasks) {
    if (task.is_object()) task["weight"] = task.value("weight", 1.0) * weight;
  }
  return tasks;
}

/// Everything but the values: the parts' tasks one after the other.
Scores together(std::span<const Scores> parts, std::span<const double> weights) {
  Scores out = parts.front();
  out.values.clear();
  out.tasks.clear();
  out.weights.clear();
  out.source["tasks"] = Json::array();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (std::size_t t = 0; t < parts[i].tasks.size(); ++t) {
      out.tasks.push_back(parts[i].tasks[t]);
      out.weights.push_back(weights[i] * (t < parts[i].weights.size() ? parts[i].weights[t] : 1));
    }
    for (Json& task : weighted_tasks(parts[i], weights[i])) out.source["tasks"].push_back(std::move(task));
  }
  return out;
}

void check_experts(const Scores& scores, std::string_view what) {
  if (scores.grain == Grain::expert) return;
  throw UsageError(fmt::format("{} is for methods that score experts; {} scores atomic experts", what, scores.method));
}

/// Experts [begin, end) by descending score, ties to the lower id, without those that score 0.
std::vector<int> ranked(std::span<const double> scores, int begin, int end) {
  std::vector<int> ids;
  for (int id = begin; id < end; ++id) {
    if (scores[static_cast<std::size_t>(id)] != 0) ids.push_back(id);
  }
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  return ids;
}

/// Size of a group. @throws InvalidInput unless the groups are equal
int group_size(std::size_t experts, int groups) {
  if (groups < 1 || experts % static_cast<std::size_t>(groups) != 0) {
    throw InvalidInput(fmt::format("{} experts do not make {} equal groups", experts, groups));
  }
  return static_cast<int>(experts) / groups;
}

/// Places of the experts [begin, end) of one layer into `out`.
void unite_group(std::span<const Scores> tasks, std::span<const double> weights, std::size_t layer,
                 std::span<const double> sum, int begin, int end, std::vector<double>& out) {
  std::vector<double> rank(static_cast<std::size_t>(end - begin), std::numeric_limits<double>::infinity());
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    double place = 0;
    for (const int id : ranked(tasks[t].values[layer], begin, end)) {
      double& best = rank[static_cast<std::size_t>(id - begin)];
      best = std::min(best, ++place / weights[t]);
    }
  }
  std::vector<int> order(rank.size());
  std::iota(order.begin(), order.end(), begin);
  const auto rank_of = [&](int id) { return rank[static_cast<std::size_t>(id - begin)]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    if (rank_of(a) != rank_of(b)) return rank_of(a) < rank_of(b);
    return sum[static_cast<std::size_t>(a)] > sum[static_cast<std::size_t>(b)];
  });
  for (std::size_t i = 0; i < order.size(); ++i) {
    out[static_cast<std::size_t>(order[i])] = static_cast<double>(order.size() - i);
  }
}

}  // namespace

std::vector<Scores> score_each(const Statistics& statistics, const MethodMix& method, const ScoreOptions& options,
                               const std::vector<std::string>& tasks) {
  auto names = tasks;
  if (names.empty()) {
    for (const auto& task : statistics.manifest.tasks) names.push_back(task.name);
  }
  std::vector<Scores> out;
  for (const auto& name : names) out.push_back(score(statistics, method, options, {{name, 1.0}}));
  return out;
}

Scores weighted_sum(std::span<const Scores> parts, std::span<const double> weights) {
  check_parts(parts, weights);
  Scores out = together(parts, weights);
  for (std::size_t i = 0; i < parts.size(); ++i) add_weighted(out.values, weights[i], normalised(parts[i]));
  return out;
}

Scores united(std::span<const Scores> tasks, std::span<const double> weights, int groups) {
  Scores out = weighted_sum(tasks, weights);
  check_experts(out, "a union of tasks");
  const LayerScores sums = out.values;
  for (std::size_t l = 0; l < sums.size(); ++l) {
    const int size = group_size(sums[l].size(), groups);
    for (int g = 0; g < groups; ++g) unite_group(tasks, weights, l, sums[l], g * size, (g + 1) * size, out.values[l]);
  }
  out.source["combine"] = "union";
  return out;
}

Scores without(const Scores& wanted, std::span<const Scores> unwanted, std::span<const double> lambdas) {
  check_parts(unwanted, lambdas);
  check_same(wanted, unwanted.front());
  Scores out = wanted;
  normalise(out.values, out.grain, out.method);
  out.source["drop"] = Json::array();
  for (std::size_t i = 0; i < unwanted.size(); ++i) {
    add_weighted(out.values, -lambdas[i], normalised(unwanted[i]));
    out.source["drop"].push_back({{"lambda", lambdas[i]}, {"tasks", weighted_tasks(unwanted[i], 1)}});
  }
  return out;
}

std::vector<std::vector<int>> best_of(const Scores& scores, int count, int groups) {
  check_experts(scores, "the best of a task");
  std::vector<std::vector<int>> out;
  for (const auto& values : scores.values) {
    const int size = group_size(values.size(), groups);
    auto& ids = out.emplace_back();
    for (int g = 0; g < groups; ++g) {
      const auto best = ranked(values, g * size, (g + 1) * size);
      ids.insert(ids.end(), best.begin(), best.begin() + std::min<std::ptrdiff_t>(count, std::ssize(best)));
    }
    std::sort(ids.begin(), ids.end());
  }
  return out;
}

}  // namespace moetrim
