// How many experts stay: parsing and the one rounding.
#include "testing.h"

#include "given.h"
#include "moetrim/plan.h"

using namespace moetrim;
using Catch::Matchers::Contains;

TEST_CASE("a budget is a number, a ratio or a percentage", "[plan]") {
  CHECK(KeepBudget::parse("16").experts == 16);
  CHECK(KeepBudget::parse("1").experts == 1);
  CHECK_FALSE(KeepBudget::parse("16").ratio);
  CHECK(KeepBudget::parse("0.5").ratio == 0.5);
  CHECK(KeepBudget::parse("1.0").ratio == 1.0);
  CHECK(KeepBudget::parse("50%").ratio == 0.5);
  CHECK(KeepBudget::parse("12.5%").ratio == 0.125);
  CHECK(KeepBudget::parse("100%").ratio == 1.0);
  CHECK_FALSE(KeepBudget::parse("50%").experts);
}

TEST_CASE("anything else is refused", "[plan]") {
  for (const char* text : {"", "0", "-1", "0.0", "0%", "1.01", "101%", "16.5", "abc", "1e3", "0x10", "nan", "inf", "50%%", "%",
                           ".", "5 0", "1/2", "99999999999999999999"}) {
    CAPTURE(text);
    CHECK_THAT(given::thrown_by([&] { KeepBudget::parse(text); }), Contains("UsageError") && Contains("keep"));
  }
}

TEST_CASE("a ratio is rounded half up, by its decimal value", "[plan]") {
  struct Row {
    const char* text;
    int experts, keep;
  };
  // In binary 0.29 x 100 and 0.145 x 100 are below 29 and 14.5; truncating would keep 28, and plain rounding 14.
  const std::vector<Row> rows{{"0.29", 100, 29}, {"29%", 100, 29}, {"0.145", 100, 15}, {"0.5", 7, 4},   {"50%", 11, 6},
                              {"0.25", 5, 1},    {"0.3", 5, 2},    {"0.1", 5, 1},      {"0.09", 5, 0},  {"1.0", 5, 5},
                              {"0.335", 1000, 335}, {"0.49", 128, 63}, {"0.999", 256, 256}, {"12", 5, 12}};
  for (const Row& row : rows) {
    CAPTURE(row.text, row.experts);
    CHECK(KeepBudget::parse(row.text).of(row.experts) == row.keep);
  }
  CHECK(KeepBudget::parse("0.5").of(24, 8) == 16);  // 12 is half way between 8 and 16
  CHECK(KeepBudget::parse("0.29").of(800, 8) == 232);
  CHECK(KeepBudget::parse("12").of(24, 8) == 12);
  CHECK_THAT(given::thrown_by([] { KeepBudget{}.of(5); }), Contains("UsageError"));
  CHECK_THAT(given::thrown_by([] { KeepBudget{.experts = 2, .ratio = 0.5}.of(5); }), Contains("UsageError"));
  CHECK_THAT(given::thrown_by([] { KeepBudget{.experts = {}, .ratio = 1.5}.of(5); }), Contains("UsageError"));
}
