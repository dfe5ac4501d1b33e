// Which rows stay whole beside factors of low rank.

#include <limits>

#include "testing.h"

#include "export/low_rank.h"

using namespace moetrim;
using namespace moetrim::export_detail;

TEST_CASE("the threshold of the worked example: of three rows two stay, although a third of the entries was asked for") {
  const std::vector<RowImportance> rows = {{.columns = 2, .of_row = {0.061073F, 0.189272F, 0.178199F}}};
  CHECK(row_threshold(rows, Share::parse("0.333333333", "share")) == 0.178199F);
  CHECK(row_threshold(rows, Share{.part = 1, .whole = 3}) == 0.178199F);
}

TEST_CASE("rows count as many entries as they have columns, and the share is exact") {
  const std::vector<RowImportance> rows = {{.columns = 9, .of_row = {1, 4}}, {.columns = 1, .of_row = {3, 2}}};
  CHECK(row_threshold(rows, Share::parse("0.55", "share")) == 1.0F);    // 9 of 20 go
  CHECK(row_threshold(rows, Share::parse("0.5", "share")) == 2.0F);     // the 10th
  CHECK(row_threshold(rows, Share::parse("0.45", "share")) == 3.0F);
  CHECK(row_threshold(rows, Share::parse("0.44", "share")) == 3.0F);    // 11.2, rounded down
  CHECK(row_threshold(rows, Share::parse("0.01", "share")) == 4.0F);
  CHECK(row_threshold(rows, Share::parse("1.0", "share")) == -std::numeric_limits<float>::infinity());
}

TEST_CASE("rows below the threshold become the factors' product, the others keep their values") {
  // gate and up [3, 2] in turns, input first: [2, 6].
  const std::vector<double> gate = {3, 0, 0, 2, 1, 1};
  std::vector<double> slab(12, 0.0);
  for (std::size_t row = 0; row < 3; ++row) {
    for (std::size_t column = 0; column < 2; ++column) slab[column * 6 + 2 * row] = gate[row * 2 + column];
  }
  const std::vector<MatrixView> views = {{.first = 0, .rows = 3, .columns = 2, .row_step = 2, .column_step = 6},
                                         {.first = 1, .rows = 3, .columns = 2, .row_step = 2, .column_step = 6}};
  std::vector<RowImportance> importance;
  const std::vector<double> before = slab;
  factor_slab(slab, views, {.rank = 1}, &importance);
  CHECK(slab == before);
  REQUIRE(importance.size() == 2);
  CHECK(importance[0].of_row[1] == Approx((0.37139 + 1.92848) / 2).epsilon(1e-4));
  factor_slab(slab, views, {.rank = 1, .threshold = 1});
  CHECK(slab[0] == Approx(2.89272).epsilon(1e-5));
  CHECK(slab[6] == Approx(0.55709).epsilon(1e-4));
  CHECK(slab[2 + 6] == 2);   // row 1 of gate
  CHECK(slab[1] == 0);
}
