// Every method's scores on the worked example, by hand.
#include "testing.h"

#include "moetrim/plan.h"
#include "moetrim/score.h"
#include "score/worked_example.h"

using namespace moetrim;

namespace {

using Values = std::vector<double>;
using Ids = std::vector<int>;

void check_scores(const Scores& scores, std::size_t layer, const Values& expected) {
  CAPTURE(scores.method, layer);
  REQUIRE(scores.values[layer].size() == expected.size());
  for (std::size_t e = 0; e < expected.size(); ++e) {
    CAPTURE(e);
    CHECK(scores.values[layer][e] == testing::Approx(expected[e]).epsilon(1e-5).margin(1e-12));
  }
}

std::vector<Ids> kept(const Statistics& statistics, const Scores& scores, int keep) {
  PlanRequest request;
  request.keep.experts = keep;
  const Plan plan = make_plan(statistics, scores, request, Variant::executed);
  std::vector<Ids> sets;
  for (const auto& layer : plan.layers) sets.push_back(layer.keep);
  return sets;
}

Scores scored(const Statistics& statistics, const char* method, Variant variant = Variant::executed) {
  return score(statistics, find_scoring_method(method), {.variant = variant, .seed = 0});
}

}  // namespace

TEST_CASE("TCESS as published: raw logits, with its sign defect", "[score]") {
  struct Row {
    given::Marks marks;
    Values a, b;
    std::vector<Ids> keep2, keep3;
  };
  const std::vector<Row> rows{
      {{1, -1}, {2. / 3, 1.25 / 3, -.25 / 3, 0}, {1. / 3, 0, -.25, 1}, {{0, 1}, {0, 3}}, {{0, 1, 3}, {0, 1, 3}}},
      {{2, -1}, {2. / 3, .75, -.25 / 3, 0}, {1. / 3, 0, .5 / 3, 2. / 3}, {{0, 1}, {0, 3}}, {{0, 1, 3}, {0, 2, 3}}},
      {{2, .4}, {.5, 1.25 / 3, -.25 / 3, 0}, {1. / 3, 0, -.25, 2. / 3}, {{0, 1}, {0, 3}}, {{0, 1, 3}, {0, 1, 3}}},
  };
  for (const auto& row : rows) {
    CAPTURE(row.marks.top_k, row.marks.threshold);
    const auto statistics = worked_example::statistics(row.marks);
    const auto scores = scored(statistics, "tcess", Variant::official);
    CHECK(scores.variant == "official");
    check_scores(scores, 0, row.a);
    check_scores(scores, 1, row.b);
    CHECK(kept(statistics, scores, 2) == row.keep2);
    CHECK(kept(statistics, scores, 3) == row.keep3);  // e3 of layer A was never marked and beats e2, which was
  }
}

TEST_CASE("TCESS on executed routing: shares of the two routed logits, never negative", "[score]") {
  // Layer A: sigmoid(1.5), sigmoid(-1.5) for e0, e3; sigmoid(2.75), sigmoid(-2.75) for e2, e3; sigmoid(1) for e1, e2.
  const auto statistics = worked_example::statistics({1, -1});
  const auto scores = scored(statistics, "tcess");
  check_scores(scores, 0, {.81757448 / 3, .73105858 / 3, (.93991335 + .26894142) / 3, (.18242552 + .06008665) / 3});
  // Layer B: differences 0.5 (e2 over e1), 0.5 (e0 over e2), 1.25 (e2 over e0).
  check_scores(scores, 1, {(.62245933 + .22270014) / 3, .37754067 / 3, (.62245933 + .37754067 + .77729986) / 3, 0});
  CHECK(kept(statistics, scores, 3) == std::vector<Ids>{{0, 1, 2}, {0, 1, 2}});

  const auto marked = scored(worked_example::statistics({1, 0.4}), "tcess");
  check_scores(marked, 0, {.81757448 / 3, .73105858 / 3, .93991335 / 3, 0});
}

TEST_CASE("EASY-EP: the expert with the largest output loses, because its token barely turns", "[score]") {
  const auto statistics = worked_example::statistics();
  for (const Variant variant : {Variant::executed, Variant::official}) {
    const auto scores = scored(statistics, "easy-ep", variant);
    check_scores(scores, 0, {0.28922173, 0.00266838, 0.02303494, 1.02247092});
    check_scores(scores, 1, {0.28505029, 0.62786690, 7.68602941, 0});
    CHECK(kept(statistics, scores, 2) == std::vector<Ids>{{0, 3}, {1, 2}});
  }
}

TEST_CASE("REAP: mean gated norm over the routed tokens, zero for an expert without any", "[score]") {
  const auto statistics = worked_example::statistics();
  const auto scores = scored(statistics, "reap");
  check_scores(scores, 0, {1.464815, 1.450753, (2.255662 * 2 + 1.049247 * 10) / 2, (1.035185 * 5 + 0.244338 * 2.5) / 2});
  check_scores(scores, 1, {(1.350294 * 5 + 0.677252 * 0.5) / 2, 1.132183 * 2, (1.367817 + 1.149706 + 1.822748 * 5) / 3, 0});
  CHECK(kept(statistics, scores, 2) == std::vector<Ids>{{2, 3}, {0, 2}});
}

TEST_CASE("counts, gate weight and output norm are plain sums", "[score]") {
  const auto statistics = worked_example::statistics();
  const auto frequency = scored(statistics, "frequency");
  check_scores(frequency, 0, {1, 1, 2, 2});
  check_scores(frequency, 1, {2, 1, 3, 0});
  const auto soft = scored(statistics, "soft-frequency");
  check_scores(soft, 0, {1.464815, 1.450753, 3.304909, 1.279523});
  check_scores(soft, 1, {2.027546, 1.132183, 4.340271, 0});
  const auto ean = scored(statistics, "ean");
  check_scores(ean, 0, {1, 1, 12, 7.5});
  check_scores(ean, 1, {5.5, 2, 7, 0});
  CHECK(kept(statistics, frequency, 3) == std::vector<Ids>{{0, 2, 3}, {0, 1, 2}});  // e0 and e1 of layer A tie: the lower id
}

TEST_CASE("EASY-EP's mix: each domain normalised per layer, then added", "[score]") {
  auto manifest = worked_example::statistics().manifest;
  manifest.tasks.push_back({.name = "b", .digest = "second", .demonstrations = 1, .tokens = 0, .counted_tokens = 0});
  std::vector<LayerStatistics> layers{given::layer(0, 2, 4, worked_example::layer_a()),
                                      given::layer(1, 2, 4, worked_example::layer_b())};
  const std::vector<Values> second{{0, 8, 1, 1}, {1, 1, 6, 2}};
  for (int l = 0; l < 2; ++l) {
    for (int e = 0; e < 4; ++e) {
      layers[static_cast<std::size_t>(l)].at(Stat::easy_ep_sum, 1, 0, e) =
          second[static_cast<std::size_t>(l)][static_cast<std::size_t>(e)];
    }
  }
  const auto statistics = given::statistics(manifest, layers);
  const auto mix = scored(statistics, "easy-ep");
  CHECK(mix.tasks == std::vector<std::string>{"a", "b"});
  check_scores(mix, 0, {.21625737, .80199521, .11722372, .8645237});
  check_scores(mix, 1, {.13314944, .17301672, 1.49383383, .2});
  CHECK(kept(statistics, mix, 2) == std::vector<Ids>{{1, 3}, {2, 3}});

  const auto& easy_ep = find_scoring_method("easy-ep");
  check_scores(score(statistics, easy_ep, {}, {{"b", 3.0}}), 0, second[0]);  // one task is left as it is
  check_scores(score(statistics, easy_ep, {}, {{"b", 2.0}, {"a", 1.0}}), 0,
               {.21625737, .80199521 + .8, .11722372 + .1, .8645237 + .1});
}
