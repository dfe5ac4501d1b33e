// Scores of several tasks put together: worked numbers, and what unions promise.
#include "moetrim/task_algebra.h"

#include "testing.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <set>

#include "score/second_order.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

using Values = std::vector<double>;

/// Scores of one layer.
Scores of_task(const std::string& task, Values values) {
  Scores scores;
  scores.method = "frequency";
  scores.variant = "executed";
  scores.layers = {3};
  scores.values = {std::move(values)};
  scores.tasks = {task};
  scores.weights = {1};
  scores.source["tasks"] = nlohmann::ordered_json::array({{{"name", task}, {"weight", 1.0}}});
  return scores;
}

/// The experts with the `keep` highest values; of equal ones the lower id.
std::set<int> best(const Values& values, std::size_t keep) {
  std::vector<int> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  return {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(keep)};
}

std::string refusal(const std::function<void()>& what) { return given::thrown_by(what); }

}  // namespace

TEST_CASE("a union takes places by turns, ties by the sum", "[score][tasks]") {
  const std::vector<Scores> tasks{of_task("a", {8, 4, 2, 1, 1, 0}), of_task("b", {0, 1, 0, 0, 5, 4})};
  // a: 0 1 2 3 4, b: 4 5 1. First places: 0 (sum 8/16) and 4 (1/16 + 5/10): 4. Second: 1 (4/16 + 1/10) and 5 (4/10): 5.
  // Third: 2; fourth: 3.
  const std::vector<double> equal{1, 1};
  const Scores both = united(tasks, equal);
  CHECK(both.values[0] == Values{5, 3, 2, 1, 6, 4});
  CHECK(both.tasks == std::vector<std::string>{"a", "b"});
  CHECK(both.source.at("combine") == "union");
  // Ranks of a halved: 0 at 1/2, then 1 and 4 at 1, of which 4 has the larger sum, then 2 at 3/2, 3 and 5 at 2.
  const std::vector<double> twice{2, 1};
  CHECK(united(tasks, twice).values[0] == Values{6, 4, 3, 1, 5, 2});
  CHECK(united(tasks, twice).weights == twice);
  // In two groups of three each has its own order; an expert that nobody scores is last even with the lowest id.
  CHECK(united(tasks, equal, 2).values[0] == Values{3, 2, 1, 2, 3, 1});
  CHECK(united(std::vector{of_task("a", {0, 0, 0, 1})}, std::vector{1.0}).values[0] == Values{3, 2, 1, 4});
}

TEST_CASE("a union holds the best of every task", "[score][tasks][every]") {
  std::mt19937_64 bits(7);
  const auto uniform = [&] { return static_cast<double>(bits() >> 11U) * 0x1p-53; };
  constexpr std::size_t kExperts = 23;
  for (std::size_t count : {1U, 2U, 3U, 5U}) {
    std::vector<Scores> tasks;
    for (std::size_t t = 0; t < count; ++t) {
      Values values(kExperts);
      for (double& value : values) value = std::floor(1 + 9 * uniform());  // many ties, none 0
      tasks.push_back(of_task(std::string(1, static_cast<char>('a' + t)), values));
    }
    const Values order = united(tasks, std::vector<double>(count, 1.0)).values[0];
    for (std::size_t keep = 1; keep <= kExperts; ++keep) {
      const auto kept = best(order, keep);
      std::set<int> wanted;
      for (const Scores& task : tasks) wanted.merge(best(task.values[0], keep / count));
      CHECK(std::includes(kept.begin(), kept.end(), wanted.begin(), wanted.end()));
      std::set<int> all;
      for (const Scores& task : tasks) all.merge(best(task.values[0], keep));
      CHECK(best(order, all.size()) == all);
    }
  }
}

TEST_CASE("weighted sums and dropped tasks, by hand", "[score][tasks]") {
  const std::vector<Scores> tasks{of_task("a", {6, 2, 0}), of_task("b", {0, 1, 1})};
  const std::vector<double> weights{1, 2};
  CHECK(weighted_sum(tasks, weights).values[0] == Values{0.75, 1.25, 1});
  const std::vector<double> half{0.5};
  const Scores kept = without(tasks[0], std::span(tasks).subspan(1), half);
  CHECK(kept.values[0] == Values{0.75, 0, -0.25});
  CHECK(kept.tasks == std::vector<std::string>{"a"});
  CHECK(kept.source.at("drop")[0].at("tasks")[0].at("name") == "b");
  CHECK(kept.source.at("drop")[0].at("lambda") == 0.5);
}

TEST_CASE("a task is dropped from atomic experts over all layers together", "[score][tasks]") {
  const auto tasks = score_each(given::random_second_order(2, 4, 3, 2), MethodMix::parse("heapr"), {});
  const std::vector<double> half{0.5};
  const Scores kept = without(tasks[0], std::span(tasks).subspan(1), half);
  std::array<double, 2> sums{};
  for (std::size_t t = 0; t < 2; ++t) {
    for (const auto& layer : tasks[t].values) sums[t] = std::accumulate(layer.begin(), layer.end(), sums[t]);
  }
  for (std::size_t l = 0; l < 2; ++l) {
    for (std::size_t i = 0; i < kept.values[l].size(); ++i) {
      CHECK(kept.values[l][i] == testing::Approx(tasks[0].values[l][i] / sums[0] - 0.5 * tasks[1].values[l][i] / sums[1]));
    }
  }
}

TEST_CASE("a weighted sum of tasks is what score() gives for them", "[score][tasks]") {
  const auto statistics = given::random_second_order(2, 5, 3, 3);
  const std::vector<double> weights{1, 1, 2.5};
  for (const char* name : {"reap", "easy-ep+tcess:2", "heapr", "fisher+ean"}) {
    const MethodMix method = MethodMix::parse(name);
    const Scores together = score(statistics, method, {}, {{"a", 1}, {"b", 1}, {"c", 2.5}});
    const Scores added = weighted_sum(score_each(statistics, method, {}), weights);
    CHECK(added.values == together.values);
    CHECK(added.tasks == together.tasks);
    CHECK(added.weights == together.weights);
    CHECK(added.source == together.source);
  }
  CHECK(score_each(statistics, MethodMix::parse("reap"), {}, {"c", "a"})[0].tasks == std::vector<std::string>{"c"});
}

TEST_CASE("the best of a task leave out what it never uses", "[score][tasks]") {
  const Scores scores = of_task("a", {0, 3, 0, 2, 3, 1});
  CHECK(best_of(scores, 2) == std::vector<std::vector<int>>{{1, 4}});
  CHECK(best_of(scores, 5) == std::vector<std::vector<int>>{{1, 3, 4, 5}});
  CHECK(best_of(scores, 1, 2) == std::vector<std::vector<int>>{{1, 4}});
}

TEST_CASE("scores that cannot be put together are refused", "[score][tasks]") {
  const Scores a = of_task("a", {1, 2, 3, 4});
  Scores other = a;
  other.method = "reap";
  const std::vector<double> one{1, 1};
  CHECK_THAT(refusal([&] { weighted_sum(std::vector{a, other}, one); }), Contains("InvalidInput") && Contains("method"));
  other = of_task("b", {1, 2, 3});
  CHECK_THAT(refusal([&] { united(std::vector{a, other}, one); }), Contains("number of experts"));
  other = a;
  other.source["checkpoint_fingerprint"] = "x";
  CHECK_THAT(refusal([&] { without(a, std::vector{other}, std::vector{1.0}); }), Contains("checkpoint"));
  for (const double weight : {0.0, -1.0, std::nan("")}) {
    CHECK_THAT(refusal([&] { united(std::vector{a}, std::vector{weight}); }), Contains("UsageError") && Contains("above zero"));
  }
  CHECK_THAT(refusal([&] { weighted_sum(std::vector{a}, one); }), Contains("2 weights for the scores of 1"));
  CHECK_THAT(refusal([&] { united(std::vector{a, a}, one, 3); }), Contains("3 equal groups"));
  const auto atoms = score_each(given::random_second_order(1, 4, 3, 2), MethodMix::parse("heapr"), {});
  CHECK_THAT(refusal([&] { united(atoms, one); }), Contains("UsageError") && Contains("atomic experts"));
}
