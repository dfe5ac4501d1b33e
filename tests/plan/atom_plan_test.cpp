// Scores of atomic experts and limits to a plan: hand-computed cases of every scope, rounding and budget.
#include "testing.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>

#include "moetrim/plan.h"
#include "score/second_order.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

using Values = std::vector<std::vector<double>>;
using Ids = std::vector<int>;

/// Layers of scores [experts, width], top-1 routing. One token was routed to every expert, unless `routed` says otherwise.
struct Case {
  Statistics statistics;
  Scores scores;
  std::optional<Scores> experts{};

  Case(int experts_per_layer, Values values, const Values& routed = {}) {
    const int width = static_cast<int>(values.front().size()) / experts_per_layer;
    std::vector<LayerStatistics> layers;
    std::vector<AtomStatistics> atoms;
    for (std::size_t l = 0; l < values.size(); ++l) {
      layers.emplace_back(static_cast<int>(l), 1, experts_per_layer);
      layers.back().token_count[0] = 100;
      for (int e = 0; e < experts_per_layer; ++e) {
        layers.back().at(Stat::routed_count, 0, 0, e) = routed.empty() ? 1 : routed[l][static_cast<std::size_t>(e)];
      }
      atoms.emplace_back(static_cast<int>(l), 1, experts_per_layer, width);
    }
    auto manifest = given::manifest(static_cast<int>(values.size()), experts_per_layer, 1);
    statistics = given::with_atoms(given::statistics(manifest, layers), atoms);
    statistics.manifest.sizes = {
        .checkpoint_bytes = 10'000, .expert_bytes = 10 * width + 7, .atom_bytes = 10, .width = width, .hidden = 2};
    scores.method = "by-hand";
    scores.variant = "executed";
    scores.grain = Grain::atom;
    scores.width = width;
    scores.layers = statistics.manifest.moe_layers;
    scores.values = std::move(values);
  }

  Case& choosing(Values values) {
    experts.emplace();
    experts->method = "by-eye";
    experts->variant = "executed";
    experts->layers = scores.layers;
    experts->values = std::move(values);
    return *this;
  }

  Plan plan(const PlanRequest& request) const {
    Plan made = make_plan(statistics, scores, request, Variant::executed, experts ? &*experts : nullptr);
    const given::TempFolder folder;  // whatever is planned can be written and read
    write_plan(folder / "plan.json", made);
    CHECK(plan_to_json(read_plan(folder / "plan.json")) == plan_to_json(made));
    return made;
  }
  std::string refusal(const PlanRequest& request) const {
    return given::thrown_by([&] { plan(request); });
  }
};

PlanRequest share(const char* text, AtomScope scope = AtomScope::global) {
  return {.keep_atoms = AtomBudget::parse(text), .scope = scope};
}

std::vector<AtomRanges> atoms(const Plan& plan, std::size_t layer = 0) { return plan.layers[layer].atoms; }

Ids widths(const Plan& plan) {
  Ids all;
  for (const PlanLayer& layer : plan.layers) {
    for (const AtomRanges& ranges : layer.atoms) all.push_back(atom_count(ranges));
  }
  return all;
}

/// HEAPr's worked example through its own method.
Plan heapr_plan(const char* keep, const ScoreOptions& options = {}) {
  LayerStatistics layer(0, 1, 3);
  layer.token_count[0] = 3;
  const auto statistics = given::with_atoms(given::statistics(given::manifest(1, 3, 1), {layer}), {given::heapr_example()});
  return make_plan(statistics, score(statistics, find_scoring_method("heapr"), options), share(keep), options.variant);
}

}  // namespace

TEST_CASE("HEAPr's worked example: half of six atoms, a never-routed expert first or whole", "[plan][atoms]") {
  using Atoms = std::vector<AtomRanges>;
  const Atoms first{{{0, 2}}, {{0, 1}}, {}};
  CHECK(atoms(heapr_plan("0.5")) == first);
  CHECK(atoms(heapr_plan("0.5", {.variant = Variant::official})) == first);
  CHECK(atoms(heapr_plan("0.5", {.variant = Variant::official, .library = "4.51"})) == Atoms{{{0, 1}}, {}, {{0, 2}}});
  CHECK(atoms(heapr_plan("2")) == Atoms{{{0, 2}}, {}, {}});  // E0.1 and E1.0 tie: the lower expert
}

TEST_CASE("ties go to the lower layer, expert and atom", "[plan][atoms]") {
  const Plan plan = Case(2, Values(2, std::vector<double>(6, 1.0))).plan(share("8"));
  CHECK(widths(plan) == Ids{3, 3, 2, 0});
  CHECK(atoms(plan, 1)[0] == AtomRanges{{0, 2}});
  CHECK(atoms(Case(1, {{-0.0, 0.0, -0.0, 0.0}}).plan(share("2")))[0] == AtomRanges{{0, 2}});
}

TEST_CASE("one ranking over all layers, the same number per layer, or per expert", "[plan][atoms]") {
  const Case both(2, {{9, 8, 7, 1, 2, 3}, {.9, .8, .7, .1, .2, .3}});
  CHECK(widths(both.plan(share("0.5"))) == Ids{3, 3, 0, 0});
  CHECK(widths(both.plan(share("0.5", AtomScope::layer))) == Ids{3, 0, 3, 0});
  const Plan uniform = both.plan(share("0.5", AtomScope::expert));
  CHECK(widths(uniform) == Ids{1, 1, 1, 1});
  CHECK(uniform_width(uniform, 3) == 1);
  CHECK(atoms(uniform, 1) == std::vector<AtomRanges>{{{0, 1}}, {{2, 3}}});
  CHECK_FALSE(uniform_width(both.plan(share("0.5")), 3));
  CHECK(kept_atoms(both.plan(share("0.5"))) == 6);
  CHECK((uniform.keep == 2 && uniform.width == 3 && uniform.experts == 2));
}

TEST_CASE("neighbours that stay become one range, and ranges do not touch", "[plan][atoms]") {
  CHECK(atoms(Case(1, {{5, 6, 1, 7, 1, 8, 9, 1}}).plan(share("5")))[0] == AtomRanges{{0, 2}, {3, 4}, {5, 7}});
}

TEST_CASE("a share is exact: the removed part is rounded down, in integers", "[plan][atoms]") {
  const auto of = [](const char* text, std::int64_t total) { return AtomBudget::parse(text).of(total); };
  CHECK(of("0.1", 10) == 1);             // in binary 10 x (1 - 0.9) is below 1
  CHECK(of("0.75", 10) == 8);            // 2.5 go: 2
  CHECK(of("12.5%", 7) == 1);            // 6.125 go: 6
  CHECK(of("0.29", 100) == 29);
  CHECK(of("100%", 7) == 7);
  CHECK(of("1.0", 7) == 7);
  CHECK(of("1", 7) == 1);
  CHECK(of("0.000000001", 7) == 1);      // 6.99… go: 6
  CHECK(of("0.333333333", 30'408'704) == 10'136'235);  // of DeepSeek-V3
  CHECK(of("0.999999999", std::int64_t{1} << 50) == (std::int64_t{1} << 50) - 1'125'899);
  CHECK_THROWS_AS(of("8", 7), InvalidInput);
  CHECK(AtomBudget{}.of(7) == 7);
  for (const char* text : {"", "0", "0.0", "0%", "1.01", "101%", "-1", "abc", "1e3", "50%%", "%", ".", "0.0000000001", "0.12345678%",
                           "9999999999999999999", "5 0", "1.0.0", "nan"}) {
    CAPTURE(text);
    CHECK_THAT(given::thrown_by([&] { AtomBudget::parse(text); }), Contains("UsageError") && Contains("keep-atoms"));
  }
  CHECK(Share::parse("1", "flops").value() == 1);
  CHECK(Share::parse("2.5%", "flops").value() == 0.025);
  CHECK_THAT(given::thrown_by([] { Share::parse("2", "flops"); }), Contains("UsageError") && Contains("flops \"2\""));
}

TEST_CASE("aligned widths: whole steps of an expert's best atoms, ranked by their sum", "[plan][atoms]") {
  // Best pairs: e0 {9, 1} = 10 and {.5}; e1 {6, 5} = 11 and {4}; e2 {3, 3} = 6 and {3}: 5 wide, the last step has one atom.
  const Case three(3, {{1, 9, .5, 5, 6, 4, 3, 3, 3}});
  PlanRequest request = share("6");
  request.align = 2;
  Plan plan = three.plan(request);
  CHECK(widths(plan) == Ids{2, 2, 2});
  CHECK(atoms(plan)[1] == AtomRanges{{0, 2}});
  CHECK(plan.source["rounding"]["atoms"]["kept"] == 6);
  request.keep_atoms = AtomBudget::parse("5");
  CHECK(widths(three.plan(request)) == Ids{2, 2, 0});  // the next step has two and does not fit
  request.keep_atoms = AtomBudget::parse("7");
  CHECK(widths(three.plan(request)) == Ids{2, 3, 2});  // full width is no multiple, and allowed
  request.keep_atoms = AtomBudget::parse("2");
  CHECK(widths(three.plan(request)) == Ids{0, 2, 0});
  request.keep_atoms = AtomBudget::parse("1");
  CHECK_THAT(three.refusal(request), Contains("InvalidInput") && Contains("at least 2 of 9"));
  request = share("0.9", AtomScope::expert);  // 9 of 9: nothing is cut off; 8 of 9: 2 wide
  request.align = 2;
  CHECK(widths(three.plan(request)) == Ids{3, 3, 3});
  request.keep_atoms = AtomBudget::parse("8");
  CHECK(widths(three.plan(request)) == Ids{2, 2, 2});
}

TEST_CASE("atoms go in blocks of neighbours, ranked by their sum; a shorter last one goes first", "[plan][atoms]") {
  const Case two(2, {{9, 0, 4, 4, 99, 1, 1, 5, 5, 99}});  // sums 9, 8, (99); 2, 10, (99)
  PlanRequest request = share("6");
  request.atom_blocks = 2;
  Plan plan = two.plan(request);
  CHECK(atoms(plan) == std::vector<AtomRanges>{{{0, 4}}, {{2, 4}}});
  request.keep_atoms = AtomBudget::parse("9");
  CHECK(widths(two.plan(request)) == Ids{5, 4});
  request.align = 4;  // of two blocks
  CHECK(atoms(two.plan(request)) == std::vector<AtomRanges>{{{0, 5}}, {{0, 4}}});  // 17, then no more than 17, then 12
  request.align = 1;
  request.scope = AtomScope::expert;
  request.keep_atoms = AtomBudget::parse("0.6");
  CHECK(atoms(two.plan(request)) == std::vector<AtomRanges>{{{0, 2}}, {{2, 4}}});
  request.align = 3;
  CHECK_THAT(two.refusal(request), Contains("UsageError") && Contains("divide"));
}

TEST_CASE("negative and overflowing scores keep an expert's best atoms", "[plan][atoms]") {
  PlanRequest request = share("4");
  request.align = 2;
  CHECK(widths(Case(2, {{-1, -1, -1, 0, 0, 0}}).plan(request)) == Ids{0, 3});  // -1: the shorter step is no better
  const double most = std::numeric_limits<double>::max();
  CHECK(widths(Case(2, {{1, 2, 3, most, most, most}}).plan(request)) == Ids{0, 3});
}

TEST_CASE("protected experts keep all their atoms, whatever their scores", "[plan][atoms]") {
  const Case two(2, {{9, 8, 1, 1}, {7, 6, 2, 3}});
  PlanRequest request = share("4");
  request.protect = {"0:1"};
  CHECK(widths(two.plan(request)) == Ids{2, 2, 0, 0});
  request.scope = AtomScope::layer;
  CHECK(widths(two.plan(request)) == Ids{0, 2, 2, 0});
  request.keep_atoms = AtomBudget::parse("3");
  CHECK_THAT(two.refusal(request), Contains("InvalidInput") && Contains("at least 4 of 8") && Contains("protected") &&
                                       Contains("2 in every layer"));
  request.scope = AtomScope::global;
  CHECK(widths(two.plan(request)) == Ids{1, 2, 0, 0});
  request.keep_atoms = AtomBudget::parse("1");
  CHECK_THAT(two.refusal(request), Contains("InvalidInput") && Contains("at least 2 of 8") && Contains("protected"));
  request = share("0.5", AtomScope::expert);
  request.protect = {"0:1"};
  CHECK_THAT(two.refusal(request), Contains("InvalidInput") && Contains("--scope layer or global"));
  request.keep_atoms = AtomBudget::parse("1.0");
  CHECK(widths(two.plan(request)) == Ids{2, 2, 2, 2});
}

TEST_CASE("experts are dropped first, then atoms are chosen among those that stay", "[plan][atoms]") {
  Case three(3, {{9, 9, 1, 2, 3, 4}, {5, 6, 9, 9, 7, 8}});
  three.choosing({{0, 1, 2}, {1, 0, 2}});
  PlanRequest request = share("0.5");
  request.keep = KeepBudget::parse("2");
  const Plan plan = three.plan(request);
  CHECK(plan.layers[0].keep == Ids{1, 2});
  CHECK(plan.layers[1].keep == Ids{0, 2});
  CHECK(widths(plan) == Ids{0, 0, 2, 2});
  CHECK(plan.method == "by-hand");
  CHECK(plan.source["expert_method"] == "by-eye");
  CHECK(plan.source["rounding"]["atoms"]["of"] == 8);
}

TEST_CASE("atoms are chosen among layers that keep different numbers of experts", "[plan][atoms][by-layer]") {
  Case three(3, {{9, 9, 1, 2, 3, 4}, {5, 6, 9, 9, 7, 8}});
  three.choosing({{0, 1, 2}, {1, 0, 2}});
  PlanRequest request = share("0.5");
  request.keep_by_layer = {1, 3};
  const Plan plan = three.plan(request);
  CHECK(plan.layers[0].keep == Ids{2});
  CHECK(widths(plan) == Ids{0, 0, 2, 2});
  CHECK(plan.source["expected"]["bytes"] == 10'000 - 2 * 27 - 4 * 10);
  request.protect = {"1:0"};
  CHECK(widths(three.plan(request)) == Ids{0, 2, 2, 0});
  request.protect = {};
  request.scope = AtomScope::expert;
  CHECK(widths(three.plan(request)) == Ids{1, 1, 1, 1});
  request.scope = AtomScope::layer;
  CHECK_THAT(three.refusal(request), Contains("UsageError") && Contains("scope layer"));
}

TEST_CASE("a budget of bytes takes the most atoms that fit", "[plan][atoms]") {
  Case two(2, {{4, 3, 2, 1}, {8, 7, 6, 5}});  // 10,000 bytes; an atom 10, an expert 27
  const auto within = [](std::uint64_t bytes) { return PlanRequest{.budget_bytes = bytes}; };
  const auto kept = [&](const PlanRequest& request) { return kept_atoms(two.plan(request)); };
  CHECK(kept(within(10'000)) == 8);
  CHECK(kept(within(9'999)) == 7);
  CHECK(kept(within(9'990)) == 7);
  CHECK(kept(within(9'989)) == 6);
  CHECK(kept(within(9'930)) == 1);
  CHECK_THAT(two.refusal(within(9'929)), Contains("InvalidInput") && Contains("9929") && Contains("9930"));
  CHECK(two.plan(within(9'989)).source["expected"]["bytes"] == 9'980);
  PlanRequest request = within(9'989);
  request.keep_atoms = AtomBudget::parse("0.5");
  CHECK(kept(request) == 4);  // the tightest wins
  request.keep_atoms = AtomBudget::parse("7");
  CHECK(kept(request) == 6);
  request = within(9'969);
  request.scope = AtomScope::layer;
  CHECK(widths(two.plan(request)) == Ids{2, 0, 2, 0});
  two.choosing({{1, 0}, {0, 1}});
  request = within(9'929);  // two experts less: 9,946 with all of the other two
  request.keep = KeepBudget::parse("1");
  CHECK(kept(request) == 2);
  two.statistics.manifest.sizes = {};
  CHECK_THAT(two.refusal(request), Contains("InvalidInput") && Contains("calibrate again"));
}

TEST_CASE("a budget of multiply-adds counts routed tokens times widths", "[plan][atoms]") {
  // Layer 0: 3 of 4 tokens at expert 0. An atom of it costs 3/16 of all, of expert 1 1/16; layer 1: 2/16 each.
  const Case two(2, {{8, 1, 7, 2}, {6, 5, 4, 3}}, {{3, 1}, {2, 2}});
  const auto within = [](const char* text, AtomScope scope = AtomScope::global) {
    return PlanRequest{.budget_flops = Share::parse(text, "flops"), .scope = scope};
  };
  CHECK(widths(two.plan(within("0.1875"))) == Ids{1, 0, 0, 0});
  CHECK(widths(two.plan(within("0.25"))) == Ids{1, 1, 0, 0});       // 3/16 + 1/16
  CHECK(widths(two.plan(within("37.4%"))) == Ids{1, 1, 0, 0});      // + 2/16 is 37.5%
  CHECK(widths(two.plan(within("37.5%"))) == Ids{1, 1, 1, 0});
  CHECK(widths(two.plan(within("1.0"))) == Ids{2, 2, 2, 2});
  CHECK(two.plan(within("37.5%")).source["expected"]["flops"] == testing::Approx(0.375));
  CHECK(two.plan(share("7")).source["expected"]["flops"] == testing::Approx(13. / 16));
  CHECK_THAT(two.refusal(within("0.18")), Contains("InvalidInput") && Contains("0.1875"));
  CHECK(widths(two.plan(within("0.4", AtomScope::layer))) == Ids{1, 0, 1, 0});  // two a layer are 4/16 + 4/16
  CHECK(widths(two.plan(within("0.5", AtomScope::layer))) == Ids{1, 1, 2, 0});
  CHECK(widths(two.plan(within("0.5", AtomScope::expert))) == Ids{1, 1, 1, 1});
  const Case ten(10, {{9, 8, 7, 6, 5, 4, 3, 2, 1, 0}});
  CHECK(kept_atoms(ten.plan(within("0.3"))) == 3);  // 0.1 + 0.1 + 0.1 is a little more than 0.3
  PlanRequest both = within("37.5%");
  both.keep_atoms = AtomBudget::parse("2");
  CHECK(kept_atoms(two.plan(both)) == 2);
}

TEST_CASE("dropped experts save no multiply-adds: their tokens go to those that stay", "[plan][atoms]") {
  Case two(2, {{8, 1, 7, 2}, {6, 5, 4, 3}}, {{3, 1}, {2, 2}});
  two.choosing({{0, 1}, {0, 1}});
  PlanRequest request = share("1.0");
  request.keep = KeepBudget::parse("1");
  CHECK(two.plan(request).source["expected"]["flops"] == testing::Approx(1));
  request.keep_atoms = AtomBudget::parse("3");  // half of layer 1, which has half of the tokens
  CHECK(two.plan(request).source["expected"]["flops"] == testing::Approx(0.75));
  Case silent(2, {{8, 1, 7, 2}}, {{0, 0}});  // nothing measured: used alike
  CHECK(silent.plan(share("1")).source["expected"]["flops"] == testing::Approx(0.25));
}

TEST_CASE("whole experts within a budget of bytes: the largest number that is legal", "[plan][atoms]") {
  Statistics statistics = given::random_statistics(2, 6, 2);
  statistics.manifest.sizes = {.checkpoint_bytes = 6000, .expert_bytes = 100, .atom_bytes = 1, .width = 100, .hidden = 2};
  const auto scores = score(statistics, find_scoring_method("reap"), {});
  const auto plan = [&](const PlanRequest& request) { return make_plan(statistics, scores, request, Variant::executed); };
  const auto keep = [&](std::uint64_t bytes) { return plan({.budget_bytes = bytes}).keep; };
  CHECK(keep(6000) == 6);
  CHECK(keep(5999) == 5);
  CHECK(keep(5800) == 5);
  CHECK(keep(5200) == 2);
  CHECK(plan({.budget_bytes = 5999}).source["expected"]["bytes"] == 5800);
  CHECK(plan({.keep = KeepBudget::parse("3"), .budget_bytes = 5999}).keep == 3);
  CHECK(plan({.keep = KeepBudget::parse("5"), .budget_bytes = 5400}).keep == 3);
  CHECK_THAT(given::thrown_by([&] { keep(5199); }), Contains("InvalidInput") && Contains("5200") && Contains("2 experts"));
  CHECK_THAT(given::thrown_by([&] { plan({.protect = {"0:1,2,3"}, .budget_bytes = 5399}); }), Contains("5400") && Contains("3 experts"));
  statistics.manifest.groups = {.count = 2, .chosen = 2, .rule = "max"};
  statistics.manifest.router_selects_by_logit = true;
  CHECK(keep(5999) == 4);
  statistics.manifest.sizes = {};
  CHECK_THAT(given::thrown_by([&] { keep(5999); }), Contains("InvalidInput") && Contains("calibrate again"));
}

TEST_CASE("limits that say nothing for the scores are refused", "[plan][atoms]") {
  const Case two(2, {{4, 3, 2, 1}});
  CHECK_THAT(two.refusal({}), Contains("UsageError") && Contains("--keep-atoms"));
  PlanRequest request = share("0.5");
  request.keep = KeepBudget::parse("1");
  CHECK_THAT(two.refusal(request), Contains("UsageError") && Contains("scores of experts"));
  const auto statistics = given::random_statistics(1, 4, 2);
  const auto scores = score(statistics, find_scoring_method("reap"), {});
  const auto refusal = [&](const PlanRequest& r) {
    return given::thrown_by([&] { make_plan(statistics, scores, r, Variant::executed); });
  };
  CHECK_THAT(refusal({}), Contains("UsageError") && Contains("--keep or --budget-bytes"));
  CHECK_THAT(refusal({.keep = KeepBudget::parse("2"), .budget_flops = Share{}}), Contains("UsageError") && Contains("budget-flops"));
  for (const auto& set : std::vector<std::function<void(PlanRequest&)>>{[](auto& r) { r.keep_atoms = AtomBudget::parse("1"); },
                                                                        [](auto& r) { r.scope = AtomScope::layer; },
                                                                        [](auto& r) { r.align = 8; },
                                                                        [](auto& r) { r.atom_blocks = 8; }}) {
    PlanRequest r{.keep = KeepBudget::parse("2")};
    set(r);
    CHECK_THAT(refusal(r), Contains("UsageError") && Contains("atomic"));
  }
  for (const auto scope : {AtomScope::global, AtomScope::layer, AtomScope::expert}) {
    CHECK(atom_scope_from_name(atom_scope_name(scope)) == scope);
  }
  CHECK_THAT(given::thrown_by([] { atom_scope_from_name("model"); }), Contains("UsageError") && Contains("global"));
}

TEST_CASE("scores of atoms that do not fit the statistics are refused", "[plan][atoms]") {
  Case two(2, {{4, 3, 2, 1}});
  SECTION("another width") {
    two.scores.width = 4;
    CHECK_THAT(two.refusal(share("0.5")), Contains("InvalidInput") && Contains("4 atomic experts"));
  }
  SECTION("too few") {
    two.scores.values[0].pop_back();
    CHECK_THAT(two.refusal(share("0.5")), Contains("InvalidInput") && Contains("3 scores of atomic experts"));
  }
  SECTION("not finite") {
    two.scores.values[0][2] = std::numeric_limits<double>::quiet_NaN();
    CHECK_THAT(two.refusal(share("0.5")), Contains("InvalidInput") && Contains("finite"));
  }
}

TEST_CASE("every method over atoms, at every scope, plans what it was asked for", "[plan][every][atoms]") {
  const auto statistics = given::random_second_order(3, 5, 16, 2);
  for (const ScoringMethod* method : scoring_methods()) {
    if (method->grain == Grain::expert) continue;
    const auto scores = score(statistics, *method, {});
    for (const AtomScope scope : {AtomScope::global, AtomScope::layer, AtomScope::expert}) {
      CAPTURE(method->name, atom_scope_name(scope));
      const Plan plan = make_plan(statistics, scores, share("0.75", scope), Variant::executed);
      CHECK(kept_atoms(plan) == 180);
      if (scope == AtomScope::expert) CHECK(uniform_width(plan, 16) == 12);
      const Plan aligned = make_plan(statistics, scores, {.keep_atoms = AtomBudget::parse("0.7"), .scope = scope, .align = 8},
                                     Variant::executed);
      const Ids all = widths(aligned);
      CHECK(std::all_of(all.begin(), all.end(), [](int width) { return width % 8 == 0; }));
      CHECK(kept_atoms(aligned) <= 168);
    }
  }
}
