// Merging: the worked numbers of the papers' codes, ties and experts that nobody used, and what becomes of a plan.
#include "testing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "given.h"
#include "moetrim/merging.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

using Ids = std::vector<int>;
using Values = std::vector<double>;

/// Products of the columns of [tokens][experts].
Values gram_of(const std::vector<Values>& logits) {
  const std::size_t n = logits.front().size();
  Values gram(n * n);
  for (const Values& token : logits) {
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) gram[i * n + j] += token[i] * token[j];
    }
  }
  return gram;
}

std::vector<MergeGroup> grouped(const char* method, const MergeFacts& facts, int count, const MergeOptions& options = {}) {
  return find_merging_method(method).group(facts, count, options);
}

std::vector<Ids> members(const std::vector<MergeGroup>& groups) {
  std::vector<Ids> out;
  for (const MergeGroup& group : groups) out.push_back(group.members);
  return out;
}

Ids into(const std::vector<MergeGroup>& groups) {
  Ids out;
  for (const MergeGroup& group : groups) out.push_back(group.into);
  return out;
}

void check_weights(const MergeGroup& group, const Values& expected) {
  REQUIRE(group.weights.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(group.weights[i] == testing::Approx(expected[i]).epsilon(1e-12));
}

const Values kUsage{.60, .25, .10, .05};
const Values kGram = gram_of({{1, 0, 1, 0}, {0, 1, 0, 1}, {1, 0, 0, 1}, {0, 1, 1, 0}, {2, 0, 1, 0}});

/// Six mean outputs in the plane, one of them of an expert that no token was routed to.
const MergeFacts kPlane{.usage = {.5, .2, .1, .15, .05, 0},
                        .outputs = {0, 0, 1, 0, 0, 3, 4, 0, 4.5, 1.5, 1.5, .5},
                        .hidden = 2};

}  // namespace

TEST_CASE("M-SMoE: worked groups, into the dominant experts, by usage", "[plan][merging]") {
  const auto groups = grouped("m-smoe", {.usage = kUsage, .gram = kGram}, 2);
  CHECK(members(groups) == std::vector<Ids>{{0, 2}, {1, 3}});
  CHECK(into(groups) == Ids{0, 1});
  check_weights(groups[0], {.6 / .7, .1 / .7});
}

TEST_CASE("M-SMoE: the adaptive number of groups per layer", "[plan][merging]") {
  const std::vector<Values> usage{kUsage, {.30, .28, .22, .20}};
  CHECK(adaptive_counts(usage, {}, 2) == Ids{2, 2});
  CHECK(adaptive_counts(usage, {}, 3) == Ids{2, 4});
  CHECK(adaptive_counts(usage, {{false, false, false, true}, std::vector<bool>(4)}, 3) == Ids{3, 3});
  // Ties at the threshold go out together.
  CHECK(adaptive_counts({{3, 1, 1, 1}, {3, 1, 1, 1}}, {}, 2) == Ids{1, 1});
  CHECK(adaptive_counts(usage, {}, 1) == Ids{1, 1});
  const std::vector<std::vector<bool>> all_fixed(2, std::vector<bool>(4, true));
  CHECK_THAT(given::thrown_by([&] { adaptive_counts(usage, all_fixed, 3); }),
             Contains("InvalidInput") && Contains("keep more"));
}

TEST_CASE("M-SMoE: a rare expert joins by similarity, whatever its id", "[plan][merging]") {
  MergeFacts facts{.usage = {.05, .25, .10, .60}, .gram = Values(16, 0.0)};
  const auto set = [&](std::size_t i, std::size_t j, double s) {
    facts.gram[i * 4 + j] = facts.gram[j * 4 + i] = 2 * s - 1;
  };
  for (std::size_t i = 0; i < 4; ++i) set(i, i, 1);
  set(0, 1, .9);
  set(0, 3, .2);
  set(2, 3, .3);
  set(2, 1, .8);
  const auto groups = grouped("m-smoe", facts, 2);
  CHECK(members(groups) == std::vector<Ids>{{0, 1, 2}, {3}});
  CHECK(into(groups) == Ids{1, 3});
  CHECK(groups[1].weights == Values{1});
}

TEST_CASE("HC-SMoE: worked clusters with every linkage", "[plan][merging]") {
  for (const char* linkage : {"average", "complete", "single", "ward"}) {
    CAPTURE(linkage);
    const auto groups = grouped("hc-smoe", kPlane, 3, {.linkage = linkage_from_name(linkage)});
    CHECK(members(groups) == std::vector<Ids>{{0, 1, 5}, {2}, {3, 4}});
    CHECK(into(groups) == Ids{0, 2, 3});
    check_weights(groups[0], {.5 / .7, .2 / .7, 0});
    check_weights(groups[2], {.75, .25});
  }
  // The linkages part ways earlier on: a chain, and a pair at a little more than its steps.
  const MergeFacts chain{.usage = Values(5, 1.0), .outputs = {0, 1, 2.1, 10, 11.5}, .hidden = 1};
  CHECK(members(grouped("hc-smoe", chain, 3, {.linkage = Linkage::single})) == std::vector<Ids>{{0, 1, 2}, {3}, {4}});
  CHECK(members(grouped("hc-smoe", chain, 3, {.linkage = Linkage::complete})) == std::vector<Ids>{{0, 1}, {2}, {3, 4}});
}

TEST_CASE("clusters that nobody used are plain means; of equal pairs the first merges", "[plan][merging]") {
  const MergeFacts unused{.usage = {0, 0, 0, 0}, .outputs = {0, 1, 2, 3}, .hidden = 1};
  const auto groups = grouped("hc-smoe", unused, 2);
  CHECK(members(groups) == std::vector<Ids>{{0, 1}, {2, 3}});
  CHECK(into(groups) == Ids{0, 2});
  check_weights(groups[0], {.5, .5});
}

TEST_CASE("distances of means that share a large part are exact", "[plan][merging]") {
  MergeFacts shifted = kPlane;
  for (double& value : shifted.outputs) value += 1e9;
  CHECK(members(grouped("hc-smoe", shifted, 3)) == members(grouped("hc-smoe", kPlane, 3)));
}

TEST_CASE("REAM: the most salient take their nearest in turn, up to a size", "[plan][merging]") {
  // Angles of mean outputs and logits alike: 0, 10, 20, 25, 90 degrees.
  MergeFacts facts{.usage = Values(5, 1.0), .saliency = {4, 1, 3, 1, 0}, .hidden = 2};
  for (const double degrees : {0.0, 10.0, 20.0, 25.0, 90.0}) {
    facts.outputs.push_back(std::cos(degrees * 0.017453292519943295));
    facts.outputs.push_back(std::sin(degrees * 0.017453292519943295));
  }
  std::vector<Values> logits(2);
  for (std::size_t i = 0; i < 10; ++i) logits[i % 2].push_back(facts.outputs[i]);
  facts.gram = gram_of(logits);
  const auto all = grouped("ream", facts, 2);
  CHECK(members(all) == std::vector<Ids>{{0, 1, 3, 4}, {2}});  // the first takes all it may
  const auto capped = grouped("ream", facts, 2, {.group_size = 3});
  CHECK(members(capped) == std::vector<Ids>{{0, 1, 3}, {2, 4}});
  CHECK(into(capped) == Ids{0, 2});
  check_weights(capped[0], {4.0 / 6, 1.0 / 6, 1.0 / 6});
  CHECK_THAT(given::thrown_by([&] { grouped("ream", facts, 2, {.group_size = 2}); }), Contains("--group-size at least 3"));
}

TEST_CASE("UNCURL: experts whose logits go together, and always as many groups", "[plan][merging]") {
  const auto apart = gram_of(
      {{3, 0, 2, 0, 0}, {2.5, .1, 3, 0, 0}, {0, 1, 0, 2, 0}, {0, 2, .1, 1, 0}, {0, 0, 0, 0, 5}, {-1, 0, -1, 0, 4}});
  const MergeFacts facts{.usage = Values(5, 1.0), .mass = {.1, .2, .3, .4, 0}, .gram = apart};
  const auto groups = grouped("uncurl", facts, 3);
  CHECK(members(groups) == std::vector<Ids>{{0, 2}, {1, 3}, {4}});
  CHECK(into(groups) == Ids{2, 3, 4});
  check_weights(groups[0], {.25, .75});
  const MergeFacts alike{.usage = Values(6, 1.0), .mass = Values(6, 0.0), .gram = Values(36, 2.0)};
  for (int count = 1; count <= 6; ++count) CHECK(grouped("uncurl", alike, count).size() == static_cast<std::size_t>(count));
}

TEST_CASE("every method gives any number of groups and drops nobody", "[plan][merging][every]") {
  const auto known = merging_methods();
  const MergingMethod& method = *GENERATE_COPY(Catch::Generators::from_range(known.begin(), known.end()));
  CAPTURE(method.name);
  const auto n = 9;
  std::mt19937_64 bits(3);
  const auto uniform = [&] { return static_cast<double>(bits() >> 11U) * 0x1p-53; };
  MergeFacts facts{.hidden = 4};
  std::vector<Values> logits(20, Values(n));
  for (Values& token : logits) std::generate(token.begin(), token.end(), [&] { return uniform() - .5; });
  facts.gram = gram_of(logits);
  for (int e = 0; e < n; ++e) {
    facts.usage.push_back(std::floor(4 * uniform()));
    facts.mass.push_back(uniform());
    facts.saliency.push_back(uniform());
    for (int h = 0; h < 4; ++h) facts.outputs.push_back(uniform());
  }
  for (int count = 1; count <= n; ++count) {
    const auto groups = method.group(facts, count, {});
    REQUIRE(groups.size() == static_cast<std::size_t>(count));
    Ids all;
    for (const MergeGroup& group : groups) {
      all.insert(all.end(), group.members.begin(), group.members.end());
      CHECK(std::find(group.members.begin(), group.members.end(), group.into) != group.members.end());
      CHECK(std::accumulate(group.weights.begin(), group.weights.end(), 0.0) == testing::Approx(1));
    }
    std::sort(all.begin(), all.end());
    CHECK(all == Ids{0, 1, 2, 3, 4, 5, 6, 7, 8});
  }
}

namespace {

/// Two layers of eight experts, top 2, with vectors of random numbers.
struct Case {
  Statistics statistics = given::random_statistics(2, 8, 2, 2);

  Case() {
    auto& facts = statistics.manifest.vectors.emplace();
    facts.width = 3;
    facts.hidden = 5;
    facts.all_experts = true;
  }

  ExpertVectors vectors(int layer) const {
    ExpertVectors out(layer, 2, 8, *statistics.manifest.vectors);
    std::mt19937_64 bits(static_cast<unsigned>(layer));
    const auto uniform = [&] { return static_cast<double>(bits() >> 11U) * 0x1p-53 - .5; };
    std::generate(out.output.begin(), out.output.end(), uniform);
    out.all_tokens = {3, 5};
    for (std::size_t task = 0; task < 2; ++task) {
      std::vector<Values> logits(11, Values(8));
      for (Values& token : logits) std::generate(token.begin(), token.end(), uniform);
      const auto gram = gram_of(logits);
      std::copy(gram.begin(), gram.end(), out.logit_gram.begin() + static_cast<std::ptrdiff_t>(task * gram.size()));
    }
    return out;
  }

  Plan plan(const MergeRequest& request, const PlanRequest& keep = {.keep = {.experts = 8, .ratio = {}}}) const {
    const Scores scores = score(statistics, find_scoring_method("frequency"), {});
    const Plan base = make_plan(statistics, scores, keep, Variant::executed);
    return merge_plan(base, statistics, [&](int layer) { return vectors(layer); }, request);
  }
  std::string refusal(const MergeRequest& request, const PlanRequest& keep = {.keep = {.experts = 8, .ratio = {}}}) const {
    return given::thrown_by([&] { plan(request, keep); });
  }
};

MergeRequest to(int experts, const char* method = "hc-smoe") {
  return {.method = method, .to = {.experts = experts, .ratio = {}}};
}

}  // namespace

TEST_CASE("the three forms of a plan that merges", "[plan][merging]") {
  const Case c;
  const given::TempFolder folder;
  for (const char* router : {"centroid", "map", "duplicate"}) {
    CAPTURE(router);
    MergeRequest request = to(5);
    request.router = merged_router_from_name(router);
    const Plan plan = c.plan(request);
    write_plan(folder / "p.json", plan);  // refuses what does not fit together
    const auto& layer = plan.layers.front();
    int merged = 0;
    for (const MergeGroup& group : layer.merge) merged += static_cast<int>(group.members.size()) - 1;
    CHECK(merged == 3);
    CHECK(layer.keep.size() == (plan.router == MergedRouter::duplicate ? 8 : 5));
    CHECK(router_rows(plan, layer).size() == static_cast<std::size_t>(plan.keep));
    CHECK(plan.keep == (plan.router == MergedRouter::centroid ? 5 : 8));
    CHECK(plan.method == "hc-smoe");
    CHECK(plan.align == Alignment::none);
    CHECK(plan_to_json(read_plan(folder / "p.json")) == plan_to_json(plan));
  }
}

TEST_CASE("experts are dropped first, then merged among those that stay", "[plan][merging]") {
  const Case c;
  const PlanRequest six{.keep = {.experts = 6, .ratio = {}}, .protect = {"1:2,3"}};
  const Plan plan = c.plan(to(4, "m-smoe"), six);
  const Scores scores = score(c.statistics, find_scoring_method("frequency"), {});
  const Plan before = make_plan(c.statistics, scores, six, Variant::executed);
  CHECK(plan.method == "frequency");
  CHECK(plan.align == Alignment::weights);
  for (std::size_t l = 0; l < 2; ++l) {
    Ids all = plan.layers[l].keep;
    for (const MergeGroup& group : plan.layers[l].merge) {
      for (const int member : group.members) {
        CHECK((l == 0 || (member != 2 && member != 3)));
        if (member != group.into) all.push_back(member);
      }
    }
    std::sort(all.begin(), all.end());
    CHECK(all == before.layers[l].keep);
  }
  CHECK(plan.source["merge"]["usage"][0].size() == 8);
}

TEST_CASE("a router's groups merge apart and stay equal", "[plan][merging]") {
  Case c;
  c.statistics.manifest.groups = {.count = 2, .chosen = 1, .rule = "max"};
  c.statistics.manifest.router_selects_by_logit = false;
  const Plan plan = c.plan(to(6));
  for (const PlanLayer& layer : plan.layers) {
    CHECK(std::count_if(layer.keep.begin(), layer.keep.end(), [](int id) { return id < 4; }) == 3);
    for (const MergeGroup& group : layer.merge) CHECK((group.members.front() < 4) == (group.members.back() < 4));
  }
  CHECK_THAT(c.refusal(to(5)), Contains("merge-to") && Contains("the nearest that work are 4 and 6"));
  CHECK_THAT(c.refusal(to(6), {.keep = {.experts = 8, .ratio = {}}, .protect = {"0:0,1,2"}}),
             Contains("layer 0, group 0 has 3 protected experts and 1 others") && Contains("smallest that works is 8"));
}

TEST_CASE("adaptive numbers differ per layer, so only their own router rows hold them", "[plan][merging]") {
  const Case c;
  MergeRequest request = to(4, "m-smoe");
  request.counts = MergeCounts::adaptive;
  CHECK_THAT(c.refusal(request), Contains("UsageError") && Contains("--router map or duplicate"));
  request.router = MergedRouter::map;
  const Plan plan = c.plan(request);
  CHECK(plan.layers[0].keep.size() + plan.layers[1].keep.size() <= 8);
  CHECK(plan.keep == 8);
  const given::TempFolder folder;
  write_plan(folder / "p.json", plan);
}

TEST_CASE("what cannot be merged is refused", "[plan][merging]") {
  Case c;
  CHECK_THAT(c.refusal(to(1)), Contains("InvalidInput: merge-to") && Contains("a token is routed to 2 experts"));
  CHECK_THAT(c.refusal(to(8)), Contains("nothing would be merged"));
  CHECK_THAT(c.refusal(to(4), {.keep = {.experts = 8, .ratio = {}}, .protect = {"0:0,1,2,3"}}),
             Contains("4 protected experts and 4 others") && Contains("smallest that works is 5"));
  MergeRequest request = to(4, "m-smoe");
  request.linkage = Linkage::ward;
  CHECK_THAT(c.refusal(request), Contains("UsageError: linkage") && Contains("hc-smoe"));
  c.statistics.manifest.vectors->all_experts = false;
  CHECK_THAT(c.refusal(to(4)), Contains("all-experts"));
  CHECK(c.refusal(to(4, "uncurl")).empty());
}

TEST_CASE("tasks count by their weights, not by their tokens", "[plan][merging]") {
  const Case c;
  MergeRequest one = to(4);
  one.task_weights = {{"a", 1.0}};
  MergeRequest nearly = to(4);
  nearly.task_weights = {{"a", 1.0}, {"b", 1e-12}};
  const auto layers = [&](const MergeRequest& request) { return plan_to_json(c.plan(request))["layers"][0]["keep"]; };
  CHECK(layers(one) == layers(nearly));
  nearly.task_weights = {{"a", 1e-12}, {"b", 1.0}};
  MergeRequest other = to(4);
  other.task_weights = {{"b", 1.0}};
  CHECK(layers(other) == layers(nearly));
}
