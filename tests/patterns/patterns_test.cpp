// Patterns: what they keep of statistics, how they are told apart, and a library that many use at once.
#include "testing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <thread>

#include "given.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/patterns.h"
#include "moetrim/plan.h"
#include "score/second_order.h"

using namespace moetrim;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

TextRouting text(std::vector<float> shares) {
  TextRouting out;
  out.shares.fill(shares);
  return out;
}

/// Twenty prompts of each kind, around a direction with a small step aside.
std::vector<TextRouting> prompts(const std::vector<std::vector<float>>& kinds) {
  std::vector<TextRouting> out;
  for (const auto& kind : kinds) {
    for (int i = 0; i < 20; ++i) {
      auto shares = kind;
      shares[static_cast<std::size_t>(i) % shares.size()] += 0.05F;
      out.push_back(text(shares));
    }
  }
  return out;
}

}  // namespace

TEST_CASE("a pattern gives the scores and the plan of its statistics", "[patterns]") {
  const given::TempFolder folder;
  const Statistics statistics = given::random_statistics(3, 8, 2, 2);
  const auto library = PatternLibrary::open_or_make(folder / "lib", statistics.manifest);
  for (const int task : {0, 1}) library.add(task == 0 ? "first" : "second", make_pattern(statistics, task));
  const std::vector<Pattern> patterns{library.read("first"), library.read("second")};
  const std::vector<std::string> names{"first", "second"};
  const Statistics back = statistics_of(patterns, names);
  for (const ScoringMethod* method : scoring_methods()) {
    if (method->second_order) continue;
    CAPTURE(method->name);
    const Scores expected = score(statistics, *method, {}, {{"a", 0.75}, {"b", 0.25}});
    const Scores got = score(back, *method, {}, {{"first", 0.75}, {"second", 0.25}});
    for (std::size_t l = 0; l < 3; ++l) {
      for (std::size_t e = 0; e < 8; ++e) CHECK(got.values[l][e] == Approx(expected.values[l][e]).epsilon(1e-14));
    }
  }
  const MethodMix method = MethodMix::parse("easy-ep");
  const PlanRequest half{.keep = KeepBudget::parse("4"), .protect = {"super"}};
  const Plan expected = make_plan(statistics, score(statistics, method, {}, {{"b", 1.0}}), half, Variant::executed);
  const Plan got = make_plan(back, score(back, method, {}, {{"second", 1.0}}), half, Variant::executed);
  for (std::size_t l = 0; l < 3; ++l) CHECK(got.layers[l].keep == expected.layers[l].keep);
}

TEST_CASE("kinds of prompts are rows of a task's signature, the rarest beside their nearest", "[patterns]") {
  constexpr int kExperts = kMostKinds + 2;
  const auto counts = static_cast<std::size_t>(SignatureStat::routed_count);
  Statistics statistics = given::random_statistics(2, kExperts, 1, 1);
  CHECK(signature_of_task(statistics, 0, "task").prototypes == 1);  // statistics from before there were kinds
  LayerStatistics& first = statistics.layers.front();
  first.keep_prompts();
  // Every kind uses its own expert; the last two, met once, lean towards experts 0 and 1.
  for (std::size_t kind = 0; kind < kExperts; ++kind) {
    first.prompt_count[kind] = kind < kMostKinds ? kLeastPromptsPerPrototype : 1;
    first.prompt_routing[kind * kExperts + kind] = 100;
    if (kind >= kMostKinds) first.prompt_routing[kind * kExperts + kind - kMostKinds] = 60;
  }
  const Signature signature = signature_of_task(statistics, 0, "task");
  REQUIRE(signature.prototypes == kMostKinds);
  REQUIRE(signature.rows[counts].size() == std::size_t{2} * kMostKinds * kExperts);
  const auto row = [&](int index) { return signature.rows[counts].begin() + index * kExperts; };
  const auto slots = static_cast<double>(statistics.manifest.experts_per_token);
  CHECK(row(0)[0] == Approx(slots * 160 / 260));
  CHECK(row(0)[kMostKinds] == Approx(slots * 100 / 260));
  CHECK(row(5)[5] == Approx(slots));
  CHECK(std::equal(row(kMostKinds), row(kMostKinds + 1), row(kMostKinds + 1)));  // layers behind the first: the mean
}

TEST_CASE("second-order statistics of a pattern come back", "[patterns]") {
  const given::TempFolder folder;
  Statistics statistics = given::random_second_order(2, 4, 6, 2);
  const auto library = PatternLibrary::open_or_make(folder / "lib", statistics.manifest);
  const Pattern pattern = make_pattern(statistics, 1);
  library.add("b", pattern);
  const Pattern read = library.read("b");
  REQUIRE(read.atoms.size() == 2);
  CHECK(read.atoms[1].joint == pattern.atoms[1].joint);
  CHECK(read.atoms[0].taylor == pattern.atoms[0].taylor);
  statistics.atoms.clear();
  library.add("plain", make_pattern(statistics, 0));  // beside one that has them
  CHECK_FALSE(library.facts("plain").second_order);
}

TEST_CASE("PreMoe's distances are squared, of raw logits of the first layer", "[patterns]") {
  // methods/premoe: stored (.66667, .41667, -.08333, 0) and (0, .1, .2, .3), query (.8, 0, 0, 0): 0.198333 and 0.78
  const SignatureTable table{.stat = SignatureStat::tcess_logit_sum,
                             .depth = 1,
                             .experts = 4,
                             .names = {"a", "b"},
                             .limits = {INFINITY, INFINITY},
                             .owner = {0, 1},
                             .rows = {2.0F / 3, 1.25F / 3, -0.25F / 3, 0, 0, 0.1F, 0.2F, 0.3F}};
  const std::vector<TextRouting> queries{text({0.8F, 0, 0, 0})};
  const auto found = retrieve(table, queries, {.nearest = 2});
  CHECK(found[0].nearest[0].name == "a");
  CHECK(found[0].nearest[0].distance == Approx(0.198333).epsilon(1e-5));
  CHECK(found[0].nearest[1].distance == Approx(0.78).epsilon(1e-5));
  CHECK(found[0].confidence == Approx(1 - 0.198333 / 0.78).epsilon(1e-4));
  CHECK(found[0].fits);
}

TEST_CASE("prompts of several kinds make rows of their own, and a limit", "[patterns]") {
  const std::vector<std::vector<float>> kinds{{1, 0, 0, 0}, {0, 1, 0, 0}};
  const auto texts = prompts(kinds);
  const Signature mean = signature_of_prompts(texts, 1, 4, 1);
  const Signature both = signature_of_prompts(texts, 1, 4, 4);
  CHECK(both.prototypes == 2);  // 40 prompts, 16 for a row
  CHECK(mean.radius[0][0] > 0.25);
  CHECK(both.radius[0][0] < 0.01);
  CHECK_THAT(given::thrown_by([&] { signature_of_prompts(std::span(texts).first(15), 1, 4, 1); }),
             Contains("at least 16 prompts, got 15"));

  const given::TempFolder folder;
  const Statistics statistics = given::random_statistics(2, 4, 2, 1);
  const auto library = PatternLibrary::open_or_make(folder / "lib", statistics.manifest);
  Pattern pattern = make_pattern(statistics, 0);
  pattern.signature = both;
  library.add("two-kinds", pattern);
  pattern.signature = signature_of_prompts(prompts({{0, 0, 1, 0}}), 1, 4, 4);
  library.add("third", pattern);
  const auto table = library.signatures(SignatureStat::routed_count, 1);
  CHECK(table.owner == std::vector<std::size_t>{0, 1, 1});
  const std::vector<TextRouting> queries{text({0.1F, 2, 0, 0}), text({0, 0, 1, 0.05F}), text({0, 0, 0, 1})};
  const auto found = retrieve(table, queries, {});
  CHECK(found[0].nearest[0].name == "two-kinds");
  CHECK(found[1].nearest[0].name == "third");
  CHECK((found[0].fits && found[1].fits && !found[2].fits));
  CHECK(found[2].confidence == 0);
  CHECK_FALSE(retrieve(table, queries, {.threshold = 0.999})[0].fits);
  CHECK(retrieve(table, queries, {.limit = 2})[2].fits);
  CHECK_THAT(given::thrown_by([&] { library.signatures(SignatureStat::routed_count, 2); }),
             Contains("covers 1 MoE layers, not the 2"));
}

TEST_CASE("a pattern that lies between two is not sure", "[patterns]") {
  const SignatureTable table{.stat = SignatureStat::routed_count, .depth = 1, .experts = 2, .names = {"a", "b"},
                             .limits = {1, 1}, .owner = {0, 1}, .rows = {1, 0, 0, 1}};
  const std::vector<TextRouting> queries{text({1, 1}), text({3, 0})};
  const auto found = retrieve(table, queries, {});
  CHECK(found[0].nearest[0].name == "a");  // ties: by name
  CHECK(found[0].confidence == Approx(0).margin(1e-6));
  CHECK(found[1].confidence == Approx(1));
}

TEST_CASE("a library takes patterns of one checkpoint, each name once", "[patterns]") {
  const given::TempFolder folder;
  Statistics statistics = given::random_statistics(2, 4, 2, 1);
  const auto library = PatternLibrary::open_or_make(folder / "lib", statistics.manifest);
  const Pattern pattern = make_pattern(statistics, 0);
  library.add("math", pattern);
  CHECK_THAT(given::thrown_by([&] { library.add("math", pattern); }), Contains("InvalidInput") && Contains("--overwrite"));
  library.add("math", pattern, true);
  CHECK_THAT(given::thrown_by([&] { library.read("mth"); }), Contains("did you mean \"math\"?"));
  for (const char* name : {"", ".math", "-math", "a/b", "..", "a b", "a\nb"}) {
    CAPTURE(name);
    CHECK_THAT(given::thrown_by([&] { library.add(name, pattern); }),
               Contains("UsageError") && Contains("cannot name a pattern"));
  }
  statistics.manifest.checkpoint_fingerprint = "ffffffffffffffffffffffffffffffff";
  CHECK_THAT(given::thrown_by([&] { PatternLibrary::open_or_make(folder / "lib", statistics.manifest); }),
             Contains("checkpoint_fingerprint") && Contains("patterns of one checkpoint"));
  write_pattern(folder / "lib" / "stranger.safetensors", make_pattern(statistics, 0));  // by hand
  CHECK_THAT(given::thrown_by([&] { library.list(); }),
             Contains("stranger.safetensors") && Contains("checkpoint_fingerprint"));
  library.remove("stranger");
  CHECK(library.names() == std::vector<std::string>{"math"});
  CHECK_THAT(given::thrown_by([&] { PatternLibrary::open(folder / "none"); }), Contains("no pattern library"));
}

TEST_CASE("a damaged pattern names its file", "[patterns]") {
  const given::TempFolder folder;
  const Statistics statistics = given::random_statistics(2, 4, 2, 1);
  const auto library = PatternLibrary::open_or_make(folder / "lib", statistics.manifest);
  Pattern pattern = make_pattern(statistics, 0);
  SECTION("cut short") {
    library.add("math", pattern);
    const auto file = library.file("math");
    fs::resize_file(file, fs::file_size(file) - 8);
    CHECK_THAT(given::thrown_by([&] { library.list(); }), Contains("InvalidInput") && Contains("math.safetensors"));
  }
  SECTION("not a number") {
    pattern.values[0][3] = NAN;
    library.add("math", pattern);
    CHECK_THAT(given::thrown_by([&] { library.read("math"); }), Contains("routed_count") && Contains("element 3"));
  }
  SECTION("a signature that is not a number") {
    pattern.signature.rows[0][1] = NAN;
    library.add("math", pattern);
    CHECK_THAT(given::thrown_by([&] { library.signatures(SignatureStat::routed_count, 1); }),
               Contains("signature.routed_count"));
  }
  SECTION("more tokens than were counted") {
    pattern.tokens[1] += 1;
    library.add("math", pattern);
    CHECK_THAT(given::thrown_by([&] { library.read("math"); }), Contains("tensor tokens, element 1"));
  }
}

TEST_CASE("writers and readers at the same time see whole patterns", "[patterns]") {
  const given::TempFolder folder;
  const Statistics statistics = given::random_statistics(2, 16, 2, 1);
  const Pattern pattern = make_pattern(statistics, 0);
  constexpr int kWriters = 6, kEach = 20;
  std::atomic<bool> done{false};
  std::atomic<int> contested{0}, failures{0};
  const auto guarded = [&](const std::function<void()>& work) {
    try {
      work();
    } catch (const std::exception&) {
      ++failures;
    }
  };
  std::vector<std::thread> threads;
  for (int w = 0; w < kWriters; ++w) {
    threads.emplace_back([&, w] {
      guarded([&] {
        const auto library = PatternLibrary::open_or_make(folder / "lib", statistics.manifest);  // all at once
        for (int i = 0; i < kEach; ++i) library.add("p" + std::to_string(w) + "." + std::to_string(i), pattern);
        try {
          library.add("contested", pattern);
          ++contested;
        } catch (const InvalidInput&) {
        }
        for (int i = 0; i < kEach; i += 2) library.remove("p" + std::to_string(w) + "." + std::to_string(i));
      });
    });
  }
  std::thread reader([&] {
    while (!done) {
      if (!fs::exists(folder / "lib" / "library.json")) continue;
      guarded([&] { PatternLibrary::open(folder / "lib").signatures(SignatureStat::routed_count, 2); });
    }
  });
  for (auto& thread : threads) thread.join();
  done = true;
  reader.join();
  CHECK(failures == 0);
  CHECK(contested == 1);
  const auto library = PatternLibrary::open(folder / "lib");
  CHECK(library.list().size() == kWriters * kEach / 2 + 1);
  const auto files = std::distance(fs::directory_iterator(folder / "lib"), fs::directory_iterator());
  CHECK(files == kWriters * kEach / 2 + 2);  // and library.json: nothing is left over
}

TEST_CASE("what a killed writer left is no pattern, and goes after a day", "[patterns]") {
  const given::TempFolder folder;
  const Statistics statistics = given::random_statistics(2, 4, 2, 1);
  const auto library = PatternLibrary::open_or_make(folder / "lib", statistics.manifest);
  const fs::path old = folder / "lib" / ".math.0123456789abcdef.writing.partial",
                 fresh = folder / "lib" / ".code.0123456789abcdef.writing";
  for (const auto& file : {old, fresh}) std::ofstream(file) << "half";
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::hours(48));
  library.add("math", make_pattern(statistics, 0));
  CHECK(library.names() == std::vector<std::string>{"math"});
  CHECK_FALSE(fs::exists(old));
  CHECK(fs::exists(fresh));
}
