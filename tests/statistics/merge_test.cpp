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
