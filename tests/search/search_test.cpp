// The search against measuring everything, on made-up measures.
#include "testing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "given.h"
#include "moetrim/search.h"
#include "moetrim/split_mix.h"

using namespace moetrim;

namespace {

/// Arms with made-up measures; counts what it is asked.
struct World {
  std::vector<SearchArm> arms;
  std::vector<std::vector<Quality>> measures{};
  std::vector<std::vector<double>> answers{};
  SearchOptions options{};
  std::size_t calls = 0, measured = 0, generated = 0;

  const Quality& quality(const Candidate& c) const { return measures[c.arm][c.size]; }
  SearchResult run() {
    calls = measured = generated = 0;
    return search(arms, options, {.measure = [&](std::span<const Candidate> request) {
                                    ++calls;
                                    measured += request.size();
                                    std::vector<Quality> out;
                                    for (const Candidate& c : request) {
                                      const bool alone = arms[c.arm].alone;
                                      REQUIRE(request.size() <= (alone ? 1 : options.at_once));
                                      out.push_back(quality(c));
                                    }
                                    return out;
                                  },
                                  .exact_match = [&](const Candidate& c) {
                                    ++generated;
                                    return answers[c.arm][c.size];
                                  }});
  }
  std::optional<Candidate> brute_force() const {
    const auto& limits = options.limits;
    std::optional<Candidate> best;
    const auto key = [&](const Candidate& c) {
      const auto size = static_cast<double>(arms[c.arm].bytes[c.size]);
      return limits.quality() ? std::tuple(size, quality(c).kl, c) : std::tuple(quality(c).kl, size, c);
    };
    for (std::size_t arm = 0; arm < arms.size(); ++arm) {
      for (std::size_t size = 0; size < arms[arm].bytes.size(); ++size) {
        const Candidate c{arm, size};
        const bool good = (!limits.max_kl || quality(c).kl <= *limits.max_kl) &&
                          (!limits.max_loss_increase || quality(c).loss_increase <= *limits.max_loss_increase) &&
                          (!limits.budget_bytes || arms[arm].bytes[size] <= *limits.budget_bytes);
        if (good && (!best || key(c) < key(*best))) best = c;
      }
    }
    return best;
  }
};

/// Sizes that arms share in part, and measures that fall with the size, in few steps so that there are ties.
World falling(std::uint64_t seed) {
  SplitMix64 random(seed);
  const auto below = [&](std::uint64_t n) { return random.next() % n; };
  World world;
  const std::size_t arms = 1 + below(5);
  for (std::size_t arm = 0; arm < arms; ++arm) {
    SearchArm made{.name = std::string(1, static_cast<char>('a' + arm)), .bytes = {}, .alone = below(4) == 0};
    std::vector<Quality> measures(1 + below(30));
    Quality quality{};
    for (std::size_t i = measures.size(); i-- > 0;) {
      measures[i] = quality;
      quality.kl += static_cast<double>(below(3)) / 8;
      quality.loss_increase += static_cast<double>(below(4)) / 8;
    }
    std::uint64_t bytes = 100 * below(3);
    for (std::size_t i = 0; i < measures.size(); ++i) made.bytes.push_back(bytes += 100 * (1 + below(2)));
    world.arms.push_back(made);
    world.measures.push_back(measures);
  }
  world.options.at_once = 1 + below(16);
  return world;
}

std::size_t log2_up(std::size_t n) { return static_cast<std::size_t>(std::ceil(std::log2(static_cast<double>(n) + 1))); }

}  // namespace

TEST_CASE("the pick is that of measuring everything where measures fall with the size") {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    CAPTURE(seed);
    World world = falling(seed);
    if (seed % 4 != 1) world.options.limits.max_kl = static_cast<double>(seed % 11) / 4;
    if (seed % 4 == 1 || seed % 4 == 2) world.options.limits.max_loss_increase = static_cast<double>(seed % 13) / 4;
    if (seed % 8 >= 5) world.options.limits.budget_bytes = 1200;
    const auto result = world.run();
    CHECK(result.pick == world.brute_force());
    if (!result.pick) CHECK(result.nearest.has_value() == (result.measured.size() > 0));
    world.options.at_once = 1;
    CHECK(world.run().pick == result.pick);
    std::size_t most = kSizesBelow;
    for (const SearchArm& arm : world.arms) most += log2_up(arm.bytes.size());
    CHECK(world.measured <= most);
    world.options.all = true;
    CHECK(world.run().pick == result.pick);
  }
}

TEST_CASE("a budget alone: the largest sizes that fit, and the least KL of them") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    CAPTURE(seed);
    World world = falling(seed);
    for (auto& arm : world.measures) {
      for (std::size_t i = 0; i < arm.size(); ++i) arm[i].kl -= 1e-3 * static_cast<double>(i);  // strictly
    }
    world.options.limits.budget_bytes = 300 + 100 * (seed % 20);
    const auto result = world.run();
    CHECK(result.pick == world.brute_force());
    CHECK(world.measured <= world.arms.size() + kSizesBelow);
  }
}

TEST_CASE("whatever the measures, the pick meets the limits and the sizes just below it do not") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    World world = falling(seed);
    SplitMix64 random(seed + 1000);
    for (auto& arm : world.measures) {
      for (Quality& quality : arm) quality.kl = static_cast<double>(random.next() % 8);
    }
    world.options.limits.max_kl = 2;
    const auto result = world.run();
    if (!result.pick) continue;
    const auto pick = *result.pick;
    const auto bytes = world.arms[pick.arm].bytes[pick.size];
    CHECK(world.quality(pick).kl <= 2);
    for (std::size_t i = 1; i <= std::min(kSizesBelow, pick.size); ++i) {
      REQUIRE(result.measured.contains({pick.arm, pick.size - i}));
      CHECK(result.measured.at({pick.arm, pick.size - i}).kl > 2);
    }
    for (std::size_t arm = 0; arm < world.arms.size(); ++arm) {
      const auto& sizes = world.arms[arm].bytes;
      const auto end = static_cast<std::size_t>(std::upper_bound(sizes.begin(), sizes.end(), bytes) - sizes.begin());
      if (arm == pick.arm || end == 0) continue;
      bool settled = false;
      for (std::size_t size = end - 1; size < sizes.size(); ++size) {
        const auto found = result.measured.find({arm, size});
        settled |= found != result.measured.end() && (found->second.kl > 2 || sizes[size] == bytes);
      }
      CHECK(settled);
    }
  }
}

TEST_CASE("a dip below the boundary is found, and what is larger than the best is left alone") {
  World world{.arms = {{.name = "a", .bytes = {1, 2, 3, 4, 5, 6, 7, 8}}, {.name = "b", .bytes = {10, 20, 30}}},
              .measures = {{{9, 0}, {1, 0}, {9, 0}, {1, 0}, {1, 0}, {1, 0}, {1, 0}, {1, 0}}, {{0, 0}, {0, 0}, {0, 0}}}};
  world.options.limits.max_kl = 2;
  const auto result = world.run();
  CHECK(result.pick == Candidate{0, 1});
  CHECK(!result.measured.contains({1, 1}));
  CHECK(!result.measured.contains({0, 7}));
}

TEST_CASE("exact match is asked of the frontier alone, by halves") {
  World world{.arms = {{.name = "a", .bytes = {1, 2, 3, 4, 5, 6, 7, 8}}, {.name = "b", .bytes = {1, 2, 3, 4, 5, 6, 7, 8}}},
              .measures = {{}, {}},
              .answers = {{0, 0.1, 0.2, 0.5, 0.9, 0.9, 1, 1}, std::vector<double>(8, 1.0)}};
  for (int i = 0; i < 8; ++i) {
    world.measures[0].push_back({8.0 - i, 0});
    world.measures[1].push_back({9.0 - i, 0});  // dominated, although it answers well
  }
  world.options = {.limits = {.max_kl = {}, .max_loss_increase = {}, .min_exact_match = 0.9, .budget_bytes = {}}, .at_once = 5};
  auto result = world.run();
  CHECK(result.pick == Candidate{0, 4});
  CHECK(result.measured.size() == 16);
  CHECK(world.calls == 4);
  CHECK(world.generated <= 3 + kSizesBelow);
  for (const auto& [candidate, match] : result.exact_match) CHECK(candidate.arm == 0);
  world.options.limits.max_kl = 2;  // sizes 7 and 8 alone
  result = world.run();
  CHECK(result.pick == Candidate{0, 6});
  world.options.limits.min_exact_match = 1.1;
  result = world.run();
  CHECK(!result.pick);
  CHECK(result.nearest == Candidate{0, 7});
}

TEST_CASE("a measure that is not a number never passes") {
  World world{.arms = {{.name = "a", .bytes = {1, 2}}}, .measures = {{{std::nan(""), std::nan("")}, {0.5, 0.5}}}};
  world.options.limits.max_kl = 1e300;
  CHECK(world.run().pick == Candidate{0, 1});
}

TEST_CASE("nothing to look for is refused") {
  World world{.arms = {{.name = "a", .bytes = {1}}}, .measures = {{{0, 0}}}};
  CHECK(given::thrown_by([&] { world.run(); }).starts_with("UsageError"));
  world.options.limits.max_kl = 1;
  world.arms.clear();
  CHECK(given::thrown_by([&] { world.run(); }).starts_with("UsageError"));
}

TEST_CASE("between the points of a curve lie straight lines") {
  const LayerCurve curve{.layer = 3, .counts = {4, 8, 16}, .costs = {1.0, 0.5, 0}};
  const std::vector counts{4, 6, 8, 14, 16};
  CHECK(interpolate(curve, counts) == std::vector{1.0, 0.75, 0.5, 0.125, 0.0});
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const LayerCurve broken{.layer = 3, .counts = {4, 8, 16}, .costs = {kNever, 0.5, 0}};
  CHECK(interpolate(broken, counts) == std::vector{kNever, kNever, 0.5, 0.125, 0.0});
}

TEST_CASE("plans that keep the same have one digest, whatever chose it") {
  Plan plan;
  plan.method = "reap";
  plan.experts = 4;
  plan.keep = 2;
  plan.layers = {{.layer = 0, .keep = {0, 1}}};
  Plan other = plan;
  other.method = "ean";
  other.source["seed"] = 7;
  CHECK(plan_digest(plan) == plan_digest(other));
  other.layers[0].keep = {0, 2};
  CHECK(plan_digest(plan) != plan_digest(other));
}
