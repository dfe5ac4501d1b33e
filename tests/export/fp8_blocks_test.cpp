// FP8 blocks that are quantised again.

#include "testing.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "export/fp8_blocks.h"
#include "moetrim/error.h"
#include "quantised/small_float.h"

using namespace moetrim;
using export_detail::Fp8Blocks;
using export_detail::quantise_blocks;
using export_detail::to_e4m3;

TEST_CASE("every E4M3 number is its own nearest, and halves go to the even code", "[export][fp8]") {
  for (int code = 0; code < 256; ++code) {
    const float value = quantised_detail::e4m3(static_cast<std::uint8_t>(code));
    CAPTURE(code);
    if (std::isnan(value)) CHECK((to_e4m3(value) & 0x7F) == 0x7F);
    else CHECK(to_e4m3(value) == code);
  }
  for (int code = 0; code < 0x7E; ++code) {
    const float here = quantised_detail::e4m3(static_cast<std::uint8_t>(code));
    const float next = quantised_detail::e4m3(static_cast<std::uint8_t>(code + 1));
    const float half = (here + next) / 2;
    CAPTURE(code);
    CHECK(to_e4m3(half) == code + code % 2);
    CHECK(to_e4m3(std::nextafter(half, 0.0F)) == code);
    CHECK(to_e4m3(std::nextafter(half, 1000.0F)) == code + 1);
  }
  CHECK(to_e4m3(1e9F) == 0x7E);
  CHECK(to_e4m3(-std::numeric_limits<float>::infinity()) == 0xFE);
  CHECK(to_e4m3(-0.0F) == 0x80);
}

TEST_CASE("blocks of two by two, the last ones shorter, by hand", "[export][fp8]") {
  const std::vector<float> values{448, 1, 0,   //
                                  -2, 3, 0,    //
                                  0.5, 1, 7};  // [3, 3]
  Fp8Blocks out;
  quantise_blocks(values, 3, 2, 2, Dtype::f32, "w", out);
  std::vector<float> scales(4);
  REQUIRE(out.scales.size() == 16);
  std::memcpy(scales.data(), out.scales.data(), 16);
  CHECK(scales == std::vector<float>{1.0F, 1.0F, 1.0F / 448, 7.0F / 448});
  std::vector<int> codes;
  for (const auto code : out.codes) codes.push_back(static_cast<int>(code));
  CHECK(codes == std::vector<int>{0x7E, 0x38, 0, 0xC0, 0x44, 0, 0x76, 0x7E, 0x7E});
}

TEST_CASE("a scale that its type cannot hold is rounded up, so that no code is cut off", "[export][fp8]") {
  const float largest = GENERATE(1.0F, 3.3F, 447.9F, 1e-20F, 1e-42F);
  const Dtype type = GENERATE(Dtype::f32, Dtype::bf16, Dtype::f8_e8m0);
  const std::vector<float> values{largest, -largest / 3};
  Fp8Blocks out;
  quantise_blocks(values, 2, 128, 128, type, "w", out);
  float scale = 0;
  if (type == Dtype::f32) std::memcpy(&scale, out.scales.data(), 4);
  else if (type == Dtype::bf16) scale = quantised_detail::bf16(quantised_detail::load<std::uint16_t>(out.scales.data(), 0));
  else scale = quantised_detail::e8m0(static_cast<std::uint8_t>(out.scales[0]));
  CAPTURE(largest, scale);
  CHECK(scale >= largest / 448);
  CHECK((largest < 1e-30F || scale <= largest / 448 * (type == Dtype::f8_e8m0 ? 2.0F : 1.01F)));
  const float back = quantised_detail::e4m3(static_cast<std::uint8_t>(out.codes[0])) * scale;
  CHECK(std::fabs(back - largest) <= std::max(largest / 16, 0x1p-130F));
}

TEST_CASE("what cannot be quantised is refused by name", "[export][fp8]") {
  Fp8Blocks out;
  const std::vector<float> infinite{std::numeric_limits<float>::infinity()};
  CHECK_THROWS_WITH(quantise_blocks(infinite, 1, 1, 1, Dtype::f32, "w.scale", out), Catch::Matchers::Contains("w.scale"));
  CHECK_THROWS_AS(quantise_blocks(std::vector<float>{1}, 1, 1, 1, Dtype::f16, "w", out), InvalidInput);
}
