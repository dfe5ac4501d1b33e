// Statistics of separate runs added to one.
#include "testing.h"

#include "given.h"
#include "moetrim/error.h"
#include "moetrim/statistics.h"
#include "score/second_order.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

/// Two layers, one task; the seed makes other demonstrations.
Statistics part(const std::string& task, const std::string& digest, unsigned seed) {
  auto statistics = given::random_statistics(2, 5, 2, 1, seed);
  statistics.manifest.tasks[0].name = task;
  statistics.manifest.tasks[0].digest = digest;
  return statistics;
}

Statistics merged(const Statistics& a, const Statistics& b) { return merge_statistics(std::vector{a, b}); }

void check_close(const Statistics& a, const Statistics& b) {
  CHECK(manifest_to_json(a.manifest) == manifest_to_json(b.manifest));
  REQUIRE(a.layers.size() == b.layers.size());
  for (std::size_t l = 0; l < a.layers.size(); ++l) {
    for (int i = 0; i < kStatCount; ++i) {
      const auto x = a.layers[l].values(static_cast<Stat>(i));
      const auto y = b.layers[l].values(static_cast<Stat>(i));
      REQUIRE(x.size() == y.size());
      for (std::size_t j = 0; j < x.size(); ++j) CHECK(x[j] == testing::Approx(y[j]).margin(1e-14));
    }
    CHECK(a.layers[l].token_count == b.layers[l].token_count);
    CHECK(a.layers[l].coactivation == b.layers[l].coactivation);
  }
}

}  // namespace

TEST_CASE("parts of one task are added up, other tasks stand side by side", "[statistics]") {
  const auto sum = merge_statistics(std::vector{part("math", "m1", 1), part("code", "c1", 2), part("math", "m2", 3)});
  REQUIRE(sum.manifest.tasks.size() == 2);
  CHECK(sum.manifest.tasks[0].name == "math");
  CHECK(sum.manifest.tasks[0].digest == "m1+m2");
  CHECK(sum.manifest.tasks[0].demonstrations == 2);
  CHECK(sum.manifest.tasks[0].counted_tokens == 22);
  CHECK(sum.manifest.tasks[1].name == "code");
  CHECK(sum.manifest.tasks[1].counted_tokens == 11);
  const auto norm = [](unsigned seed) { return part("", "", seed).layers[1].at(Stat::norm_sum, 0, 2, 3); };
  CHECK(sum.layers[1].at(Stat::norm_sum, 0, 2, 3) == norm(1) + norm(3));
  CHECK(sum.layers[1].task_total(Stat::norm_sum, 1) == part("", "", 2).layers[1].task_total(Stat::norm_sum, 0));
}

TEST_CASE("merging is associative", "[statistics]") {
  const auto a = part("math", "m1", 1), b = part("code", "c1", 2), c = part("math", "m2", 3), d = part("code", "c2", 4);
  check_close(merged(merged(a, b), merged(c, d)), merge_statistics(std::vector{a, b, c, d}));
  check_close(merged(a, merged(b, merged(c, d))), merged(merged(merged(a, b), c), d));
  check_close(merge_statistics(std::vector{a}), a);
}

TEST_CASE("merged statistics can be written and read", "[statistics]") {
  const given::TempFolder folder;
  const auto sum = merged(part("math", "m1", 1), part("math", "m2", 3));
  write_statistics(folder / "sum.stats", sum);
  check_close(Statistics::read(folder / "sum.stats"), sum);
}

TEST_CASE("second-order statistics are added up with their losses", "[statistics][atoms]") {
  const auto part_of = [](const char* task, const char* digest, unsigned seed) {
    auto statistics = given::random_second_order(2, 5, 4, 1, seed);
    statistics.manifest.tasks[0].name = task;
    statistics.manifest.tasks[0].digest = digest;
    for (auto& atoms : statistics.atoms) {  // of one checkpoint
      atoms.down_squares.assign(20, 2.0);
      atoms.gate_up_squares.assign(20, 3.0);
    }
    return statistics;
  };
  const auto a = part_of("math", "m1", 1), b = part_of("code", "c1", 2), c = part_of("math", "m2", 3);
  const auto sum = merge_statistics(std::vector{a, b, c});
  CHECK(sum.manifest.tasks[0].predicted_tokens == 22);
  CHECK(sum.manifest.tasks[0].loss == a.manifest.tasks[0].loss + c.manifest.tasks[0].loss);
  CHECK(sum.atoms[1].activation[7] == a.atoms[1].activation[7] + c.atoms[1].activation[7]);
  CHECK(sum.atoms[1].joint[20 + 7] == b.atoms[1].joint[7]);
  CHECK(sum.atoms[1].taylor[40 + 3] == b.atoms[1].taylor[3]);
  CHECK(sum.atoms[1].down_squares == a.atoms[1].down_squares);

  auto other = part_of("math", "m3", 4);
  other.atoms[1].gate_up_squares[3] += 1;
  CHECK_THAT(given::thrown_by([&] { merged(a, other); }), Contains("InvalidInput") && Contains("layer 1"));
  CHECK_THAT(given::thrown_by([&] { merged(a, part("math", "m4", 5)); }), Contains("InvalidInput") && Contains("expert_width is null"));
  CHECK_THAT(given::thrown_by([&] { merged(part("math", "m4", 5), a); }), Contains("InvalidInput") && Contains("expert_width is 4"));
}

TEST_CASE("the same demonstrations are not counted twice", "[statistics]") {
  const auto a = part("math", "m1", 1), b = part("math", "m2", 2);
  CHECK_THAT(given::thrown_by([&] { merged(a, a); }), Contains("InvalidInput") && Contains("part 2") && Contains("math"));
  CHECK_THAT(given::thrown_by([&] { merged(merged(a, b), b); }), Contains("InvalidInput") && Contains("m2"));
}

TEST_CASE("parts of different runs are refused with the field that differs", "[statistics]") {
  const auto a = part("math", "m1", 1);
  const auto refusal = [&](auto change) {
    auto b = part("math", "m2", 2);
    change(b);
    return given::thrown_by([&] { merged(a, b); });
  };
  CHECK_THAT(refusal([](auto& s) { s.manifest.checkpoint_fingerprint = "ff"; }), Contains("checkpoint_fingerprint"));
  CHECK_THAT(refusal([](auto& s) { s.manifest.family = "other"; }), Contains("family"));
  CHECK_THAT(refusal([](auto& s) { s.manifest.dtype = "bf16"; }), Contains("dtype"));
  CHECK_THAT(refusal([](auto& s) { s.manifest.count = "response"; }), Contains("count"));
  CHECK_THAT(refusal([](auto& s) { s.manifest.tcess_threshold = 0.5; }), Contains("tcess_threshold"));
  CHECK_THAT(refusal([](auto& s) { s.manifest.settings["max_tokens"] = 9; }), Contains("settings"));
  CHECK_THAT(refusal([](auto& s) { s.layers.pop_back(); }), Contains("part 2") && Contains("layers"));
  CHECK_THAT(given::thrown_by([] { merge_statistics({}); }), Contains("InvalidInput"));
}

namespace {

constexpr int kDemonstrations = 19;

/// What a calibration of 19 demonstrations of one token each, or a share of it, would write.
Statistics calibrated(const DemonstrationShare& share) {
  const auto tokens = [](unsigned seed) {
    auto all = given::random_tokens(5, 2, seed);
    const auto more = given::random_tokens(5, 2, seed + 100);
    all.insert(all.end(), more.begin(), more.begin() + kDemonstrations - static_cast<std::ptrdiff_t>(all.size()));
    for (std::size_t i = 0; i < all.size(); ++i) all[i].slice = static_cast<int>(i) % kSlices;
    return all;
  };
  std::vector<LayerStatistics> layers;
  for (int layer = 0; layer < 2; ++layer) {
    std::vector<given::Token> own;
    const auto all = tokens(7U + static_cast<unsigned>(layer));
    for (int i = 0; i < kDemonstrations; ++i) {
      if (share.holds(i)) own.push_back(all[static_cast<std::size_t>(i)]);
    }
    layers.push_back(given::layer(layer, 1, 5, own));
  }
  auto statistics = given::statistics(given::manifest(2, 5, 2, 1), std::move(layers));
  auto& manifest = statistics.manifest;
  manifest.tasks[0].demonstrations = manifest.tasks[0].tokens;
  if (share.count > 1) {
    manifest.part = StatisticsManifest::Part{
        .count = share.count, .shares = {share.number}, .whole = {{kDemonstrations, kDemonstrations, kDemonstrations}}};
  }
  return statistics;
}

std::vector<Statistics> shares_of(int count) {
  std::vector<Statistics> shares;
  for (int number = 1; number <= count; ++number) shares.push_back(calibrated({number, count}));
  return shares;
}

void check_equal(const Statistics& a, const Statistics& b) {
  CHECK(manifest_to_json(a.manifest) == manifest_to_json(b.manifest));
  for (std::size_t l = 0; l < b.layers.size(); ++l) {
    for (int i = 0; i < kStatCount; ++i) {
      const auto x = a.layers[l].values(static_cast<Stat>(i));
      CHECK(std::equal(x.begin(), x.end(), b.layers[l].values(static_cast<Stat>(i)).begin()));
    }
    CHECK(a.layers[l].coactivation == b.layers[l].coactivation);
  }
}

}  // namespace

TEST_CASE("up to eight shares, in any order, are the statistics of one process to the bit", "[statistics]") {
  const Statistics whole = calibrated({});
  for (int count = 2; count <= kSlices; ++count) {
    auto shares = shares_of(count);
    check_equal(merge_statistics(shares), whole);
    std::reverse(shares.begin(), shares.end());
    check_equal(merge_statistics(shares), whole);
    std::swap(shares[0], shares[static_cast<std::size_t>(count) / 2]);
    check_equal(merge_statistics(shares), whole);
  }
  auto more = shares_of(13);
  const Statistics sum = merge_statistics(more);
  check_close(sum, whole);
  std::rotate(more.begin(), more.begin() + 5, more.end());
  check_equal(merge_statistics(more), sum);
}

TEST_CASE("every demonstration is in one share, and slices stay whole in up to eight", "[statistics]") {
  for (const int count : {1, 2, 3, 5, 8, 9, 16}) {
    for (int i = 0; i < 40; ++i) {
      int holders = 0;
      for (int number = 1; number <= count; ++number) {
        holders += DemonstrationShare{number, count}.holds(i);
        if (count <= kSlices) CHECK(DemonstrationShare{number, count}.holds(i) == DemonstrationShare{number, count}.holds(i % kSlices));
      }
      CHECK(holders == 1);
    }
  }
}

TEST_CASE("shares that are missing, doubled or of another run are refused by name", "[statistics]") {
  const auto shares = shares_of(4);
  const auto refusal = [](std::vector<Statistics> parts) { return given::thrown_by([&] { merge_statistics(parts); }); };
  CHECK_THAT(refusal({shares[0], shares[2]}), Contains("InvalidInput") && Contains("share(s) 2, 4 of 4 are missing"));
  CHECK_THAT(refusal({shares[0], shares[1], shares[1], shares[2], shares[3]}), Contains("part 2 holds share 2 too"));
  CHECK_THAT(refusal({shares[0], calibrated({2, 3})}), Contains("part 2") && Contains("\"count\":3"));
  CHECK_THAT(refusal({shares[0], calibrated({})}), Contains("a share of a run, the other a whole run"));
  const auto changed = [&](auto change) {
    auto parts = shares;
    change(parts[2].manifest);
    return refusal(parts);
  };
  CHECK_THAT(changed([](auto& m) { m.checkpoint_fingerprint = "ff"; }), Contains("part 3") && Contains("checkpoint_fingerprint"));
  CHECK_THAT(changed([](auto& m) { m.tasks[0].digest = "other"; }), Contains("part 3") && Contains("tasks"));
  CHECK_THAT(changed([](auto& m) { m.part->whole[0].tokens += 1; }), Contains("part 3") && Contains("whole"));
  CHECK_THAT(changed([](auto& m) { m.tasks[0].demonstrations -= 1; }), Contains("do not add up"));
}

TEST_CASE("a partial sum says which shares it has, and the rest can join it", "[statistics]") {
  const auto shares = shares_of(4);
  const std::vector<std::string> names{"x", "y"};
  const StatisticsMerge some({shares[3].manifest, shares[1].manifest}, names, true);
  REQUIRE(some.manifest().part);
  CHECK(some.manifest().part->shares == std::vector<int>{2, 4});
  CHECK(manifest_from_json(manifest_to_json(some.manifest()), "m").part->whole == shares[0].manifest.part->whole);
  Statistics sum{.manifest = some.manifest(), .layers = {}};
  const std::vector<const Statistics*> parts{&shares[3], &shares[1]};
  for (std::size_t l = 0; l < 2; ++l) sum.layers.push_back(some.layer([&](std::size_t part) { return parts[part]->layers[l]; }));
  check_equal(merge_statistics(std::vector{shares[2], sum, shares[0]}), calibrated({}));
  auto json = manifest_to_json(shares[0].manifest);
  json["part"]["shares"] = {1, 2, 3, 4};
  CHECK_THAT(given::thrown_by([&] { manifest_from_json(json, "m"); }), Contains("part.shares"));
  json["part"]["shares"] = {5};
  CHECK_THAT(given::thrown_by([&] { manifest_from_json(json, "m"); }), Contains("part.shares"));
}
