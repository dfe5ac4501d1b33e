// Values rounded once from fp64 to the type they are stored in.

#include <bit>
#include <cmath>
#include <cstring>

#include "testing.h"

#include "export/slab_values.h"
#include "moetrim/error.h"

using namespace moetrim;
using namespace moetrim::export_detail;

namespace {

std::uint32_t stored(double value, Dtype dtype) {
  std::vector<std::byte> out;
  store_values(std::span(&value, 1), dtype, "t", out);
  std::uint32_t bits = 0;
  std::memcpy(&bits, out.data(), out.size());
  return bits;
}

}  // namespace

TEST_CASE("values are rounded once, ties to even") {
  CHECK(stored(1.0, Dtype::bf16) == 0x3F80);
  CHECK(stored(1 + 0x1p-8, Dtype::bf16) == 0x3F80);              // a tie
  CHECK(stored(1 + 3 * 0x1p-8, Dtype::bf16) == 0x3F82);          // a tie, away from the odd one
  CHECK(stored(1 + 0x1p-8 + 0x1p-40, Dtype::bf16) == 0x3F81);    // through fp32 it would be the tie
  CHECK(stored(-(1 + 0x1p-8 + 0x1p-40), Dtype::bf16) == 0xBF81);
  CHECK(stored(1 + 3 * 0x1p-8 - 0x1p-40, Dtype::bf16) == 0x3F81);
  CHECK(stored(0x1p-150, Dtype::bf16) == 0);
  CHECK(stored(1 + 0x1p-11 + 0x1p-40, Dtype::f16) == 0x3C01);
  CHECK(stored(1 + 0x1p-11, Dtype::f16) == 0x3C00);
  CHECK(stored(65504, Dtype::f16) == 0x7BFF);
  CHECK(stored(-0x1p-24, Dtype::f16) == 0x8001);
  CHECK(stored(0x1p-25, Dtype::f16) == 0);                       // a tie
  CHECK(stored(0x1p-25 + 0x1p-70, Dtype::f16) == 1);
  CHECK(stored(0x1p-14 - 0x1p-26, Dtype::f16) == 0x400);
  CHECK(stored(0.1, Dtype::f32) == std::bit_cast<std::uint32_t>(0.1F));
}

TEST_CASE("every F16 and BF16 number is stored as itself") {
  for (std::uint32_t code = 0; code < 0x7C00; ++code) {
    const double size = code < 0x400 ? code * 0x1p-24 : (1024 + (code & 0x3FF)) * std::exp2(static_cast<int>(code >> 10) - 25);
    REQUIRE(stored(size, Dtype::f16) == code);
    REQUIRE(stored(-size, Dtype::f16) == (code | 0x8000));
  }
  for (std::uint32_t code = 0; code < 0x7F80; code += 7) {
    REQUIRE(stored(std::bit_cast<float>(code << 16), Dtype::bf16) == code);
  }
}

TEST_CASE("a value beyond the type's largest is refused, infinity stays") {
  CHECK_THROWS_AS(stored(65520, Dtype::f16), InvalidInput);
  CHECK(stored(65519.9, Dtype::f16) == 0x7BFF);
  CHECK_THROWS_AS(stored(3.4e38, Dtype::bf16), InvalidInput);
  CHECK_THROWS_AS(stored(1e39, Dtype::f32), InvalidInput);
  CHECK(stored(-INFINITY, Dtype::f16) == 0xFC00);
  CHECK(stored(INFINITY, Dtype::bf16) == 0x7F80);
  CHECK(stored(NAN, Dtype::bf16) == 0x7FC0);
}
