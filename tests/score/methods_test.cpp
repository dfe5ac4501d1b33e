// What must hold for every registered method, including those added later.
#include "testing.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "given.h"
#include "moetrim/score.h"

using namespace moetrim;

namespace {

/// `random` looks at ids instead of statistics; it has its own test.
bool measures(const ScoringMethod& method) { return method.name != "random"; }

std::vector<double> scores_of(const ScoringMethod& method, const LayerStatistics& layer, Variant variant) {
  const auto statistics = given::statistics(given::manifest(layer.layer + 1, layer.experts, 2, layer.tasks), {layer});
  return method.score(statistics.manifest, layer, 0, {.variant = variant, .seed = 0});
}

void check_close(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t e = 0; e < a.size(); ++e) CHECK(a[e] == testing::Approx(b[e]).margin(1e-15));
}

}  // namespace

TEST_CASE("every method says what it is", "[score][every]") {
  std::set<std::string_view> names;
  for (const ScoringMethod* method : scoring_methods()) {
    CAPTURE(method->name);
    CHECK(names.insert(method->name).second);
    CHECK_FALSE(method->source.empty());
    CHECK_FALSE(method->unit.empty());
    CHECK(&find_scoring_method(method->name) == method);
  }
  CHECK(names == std::set<std::string_view>{"random", "frequency", "soft-frequency", "ean", "reap", "tcess", "easy-ep"});
}

TEST_CASE("scores follow the experts when they are reordered", "[score][every]") {
  const std::vector<std::vector<int>> orders{{3, 0, 4, 1, 2}, {3, 0, 6, 1, 5, 2, 4}, {10, 3, 0, 6, 1, 8, 5, 2, 9, 4, 7}};
  for (const ScoringMethod* method : scoring_methods()) {
    if (!measures(*method)) continue;
    for (const auto& order : orders) {
      for (const Variant variant : {Variant::executed, Variant::official}) {
        CAPTURE(method->name, order.size(), variant_name(variant));
        const auto layer = given::random_layer(0, 1, static_cast<int>(order.size()), 2, 11);
        const auto plain = scores_of(*method, layer, variant);
        const auto moved = scores_of(*method, given::reordered(layer, order), variant);
        for (std::size_t e = 0; e < order.size(); ++e) CHECK(moved[e] == plain[static_cast<std::size_t>(order[e])]);
      }
    }
  }
}

TEST_CASE("two halves added score as the whole", "[score][every]") {
  const auto tokens = given::random_tokens(7, 2, 5);
  LayerStatistics halves = given::layer(0, 1, 7, {tokens.begin(), tokens.begin() + 5});
  halves.add(given::layer(0, 1, 7, {tokens.begin() + 5, tokens.end()}));
  const LayerStatistics whole = given::layer(0, 1, 7, tokens);
  for (const ScoringMethod* method : scoring_methods()) {
    CAPTURE(method->name);
    check_close(scores_of(*method, halves, Variant::executed), scores_of(*method, whole, Variant::executed));
    check_close(scores_of(*method, halves, Variant::official), scores_of(*method, whole, Variant::official));
  }
}

TEST_CASE("without tokens every measured score is zero", "[score][every]") {
  for (const ScoringMethod* method : scoring_methods()) {
    if (!measures(*method)) continue;
    CAPTURE(method->name);
    CHECK(scores_of(*method, LayerStatistics(0, 1, 5), Variant::executed) == std::vector<double>(5, 0.0));
    CHECK(scores_of(*method, LayerStatistics(0, 1, 5), Variant::official) == std::vector<double>(5, 0.0));
  }
}

TEST_CASE("an unreached expert scores zero, a reached one more", "[score][every]") {
  for (const ScoringMethod* method : scoring_methods()) {
    if (!measures(*method)) continue;
    CAPTURE(method->name);
    const given::Token token{.experts = {4, 2}, .gates = {.7, .3}, .norms = {1, 2}, .turn = .5, .logits = {0, 0, 1, 0, 2}};
    const auto scores = scores_of(*method, given::layer(0, 1, 5, {token}), Variant::executed);
    for (const std::size_t e : {0U, 1U, 3U}) CHECK(scores[e] == 0);
    CHECK(scores[2] > 0);
    CHECK(scores[4] > 0);
  }
}

TEST_CASE("executed scores are never negative, and one task does not see another", "[score][every]") {
  const auto both = given::random_layer(0, 2, 7, 3, 21);
  LayerStatistics first(0, 1, 7);
  first.add_task(0, both, 0);
  for (const ScoringMethod* method : scoring_methods()) {
    CAPTURE(method->name);
    const auto scores = scores_of(*method, both, Variant::executed);
    CHECK(scores == scores_of(*method, first, Variant::executed));
    CHECK(std::all_of(scores.begin(), scores.end(), [](double s) { return std::isfinite(s) && s >= 0; }));
  }
}
