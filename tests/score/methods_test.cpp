// What must hold for every registered method, including those added later.
#include "testing.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "given.h"
#include "moetrim/score.h"
#include "score/second_order.h"

using namespace moetrim;

namespace {

constexpr int kWidth = 3;

/// The random controls and weight magnitude look at no token; they have tests of their own.
bool measures(const ScoringMethod& method) {
  return method.name != "random" && method.name != "random-atoms" && method.name != "magnitude";
}

/// One layer, measured both ways.
struct Measured {
  LayerStatistics layer;
  AtomStatistics atoms;
};

Measured random_measured(int tasks, int experts, unsigned seed) {
  return {given::random_layer(0, tasks, experts, 2, seed), given::random_atoms(0, tasks, experts, kWidth, seed)};
}

Measured without_tokens(int experts) { return {LayerStatistics(0, 1, experts), AtomStatistics(0, 1, experts, kWidth)}; }

std::vector<double> scores_of(const ScoringMethod& method, const Measured& measured, Variant variant) {
  const auto& [layer, atoms] = measured;
  auto statistics = given::statistics(given::manifest(layer.layer + 1, layer.experts, 2, layer.tasks), {layer});
  statistics = given::with_atoms(std::move(statistics), {atoms});
  const ScoreOptions options{.variant = variant, .seed = 0};
  return method.second_order ? method.second_order(statistics.manifest, atoms, 0, options)
                             : method.score(statistics.manifest, layer, 0, options);
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
    CHECK((method->score == nullptr) != (method->second_order == nullptr));
    if (!method->expert_method.empty()) CHECK(find_scoring_method(method->expert_method).grain == Grain::expert);
    CHECK(&find_scoring_method(method->name) == method);
  }
  CHECK(names == std::set<std::string_view>{"random", "frequency", "soft-frequency", "ean", "reap", "tcess", "easy-ep", "heapr",
                                            "heapr-sum", "heapr-joint", "magnitude", "wanda", "random-atoms", "heapr-expert",
                                            "heapr-sum-expert", "heapr-joint-expert", "taylor", "fisher"});
}

TEST_CASE("scores follow the experts when they are reordered", "[score][every]") {
  const std::vector<std::vector<int>> orders{{3, 0, 4, 1, 2}, {3, 0, 6, 1, 5, 2, 4}, {10, 3, 0, 6, 1, 8, 5, 2, 9, 4, 7}};
  for (const ScoringMethod* method : scoring_methods()) {
    if (!measures(*method)) continue;
    for (const auto& order : orders) {
      for (const Variant variant : {Variant::executed, Variant::official}) {
        CAPTURE(method->name, order.size(), variant_name(variant));
        const auto measured = random_measured(1, static_cast<int>(order.size()), 11);
        const auto plain = scores_of(*method, measured, variant);
        const Measured moved{given::reordered(measured.layer, order), given::reordered(measured.atoms, order)};
        CHECK(scores_of(*method, moved, variant) == given::reordered(plain, order));
      }
    }
  }
}

TEST_CASE("two halves added score as the whole", "[score][every]") {
  const auto tokens = given::random_tokens(7, 2, 5);
  Measured halves{given::layer(0, 1, 7, {tokens.begin(), tokens.begin() + 5}), given::random_atoms(0, 1, 7, kWidth, 8)};
  halves.layer.add(given::layer(0, 1, 7, {tokens.begin() + 5, tokens.end()}));
  halves.atoms.add_task(0, halves.atoms, 0);
  Measured whole{given::layer(0, 1, 7, tokens), given::random_atoms(0, 1, 7, kWidth, 8)};
  for (auto member : {&AtomStatistics::tokens, &AtomStatistics::activation, &AtomStatistics::gradient, &AtomStatistics::joint,
                      &AtomStatistics::taylor, &AtomStatistics::fisher}) {
    for (double& value : whole.atoms.*member) value *= 2;
  }
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
    const std::vector<double> zeros(method->grain == Grain::atom ? 5 * kWidth : 5, 0.0);
    CHECK(scores_of(*method, without_tokens(5), Variant::executed) == zeros);
    if (method->by_library) continue;  // -1 or the largest number, see its own test
    CHECK(scores_of(*method, without_tokens(5), Variant::official) == zeros);
  }
}

TEST_CASE("an unreached expert scores zero, a reached one more", "[score][every]") {
  for (const ScoringMethod* method : scoring_methods()) {
    if (!measures(*method)) continue;
    CAPTURE(method->name);
    const given::Token token{.experts = {4, 2}, .gates = {.7, .3}, .norms = {1, 2}, .turn = .5, .logits = {0, 0, 1, 0, 2}};
    const auto atoms = given::atoms(0, 1, 5, kWidth, {{.expert = 4, .x = {1, 2, 1}, .c = {1, 1, 3}},
                                                      {.expert = 2, .x = {1, 1, 2}, .c = {2, 1, 1}}});
    const auto scores = scores_of(*method, {given::layer(0, 1, 5, {token}), atoms}, Variant::executed);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      const std::size_t expert = method->grain == Grain::atom ? i / kWidth : i;
      CAPTURE(expert);
      CHECK((scores[i] > 0) == (expert == 2 || expert == 4));
      CHECK(scores[i] >= 0);
    }
  }
}

TEST_CASE("executed scores are never negative, and one task does not see another", "[score][every]") {
  const auto both = random_measured(2, 7, 21);
  Measured first{LayerStatistics(0, 1, 7), AtomStatistics(0, 1, 7, kWidth)};
  first.layer.add_task(0, both.layer, 0);
  first.atoms.down_squares = both.atoms.down_squares;
  first.atoms.gate_up_squares = both.atoms.gate_up_squares;
  first.atoms.add_task(0, both.atoms, 0);
  for (const ScoringMethod* method : scoring_methods()) {
    CAPTURE(method->name);
    const auto scores = scores_of(*method, both, Variant::executed);
    CHECK(scores == scores_of(*method, first, Variant::executed));
    CHECK(std::all_of(scores.begin(), scores.end(), [](double s) { return std::isfinite(s) && s >= 0; }));
  }
}
