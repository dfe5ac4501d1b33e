// FP8 blocks that are quantised again.

#include "testing.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "export/fp8_blocks.h"
#include "moetrim/error.h"
#include "quantised/small_float.h"

using namespace moetrim;
using namespace moetrim::export_detail;

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
  const Blocks blocks{3, 2, 2};
  const auto scales = block_scales(values, blocks, Dtype::f32, "w");
  CHECK(scales == std::vector<float>{1.0F, 1.0F, 1.0F / 448, 7.0F / 448});
  std::vector<std::byte> bytes;
  encode_blocks(values, blocks, scales, bytes);
  std::vector<int> codes;
  for (const auto code : bytes) codes.push_back(static_cast<int>(code));
  CHECK(codes == std::vector<int>{0x7E, 0x38, 0, 0xC0, 0x44, 0, 0x76, 0x7E, 0x7E});
}

TEST_CASE("a scale that its type cannot hold is rounded up, so that no code is cut off", "[export][fp8]") {
  const float largest = GENERATE(1.0F, 3.3F, 447.9F, 1e-20F, 1e-42F);
  const Dtype type = GENERATE(Dtype::f32, Dtype::bf16, Dtype::f8_e8m0);
  const std::vector<float> values{largest, -largest / 3};
  const Blocks blocks{2, 128, 128};
  const auto scales = block_scales(values, blocks, type, "w");
  std::vector<std::byte> stored, codes;
  store_scales(scales, type, stored);
  encode_blocks(values, blocks, scales, codes);
  float scale = 0;
  if (type == Dtype::f32) std::memcpy(&scale, stored.data(), 4);
  else if (type == Dtype::bf16) scale = quantised_detail::bf16(quantised_detail::load<std::uint16_t>(stored.data(), 0));
  else scale = quantised_detail::e8m0(static_cast<std::uint8_t>(stored[0]));
  CHECK(scale == scales[0]);
  CAPTURE(largest, scale);
  CHECK(scale >= largest / 448);
  CHECK((largest < 1e-30F || scale <= largest / 448 * (type == Dtype::f8_e8m0 ? 2.0F : 1.01F)));
  const float back = quantised_detail::e4m3(static_cast<std::uint8_t>(codes[0])) * scale;
  CHECK(std::fabs(back - largest) <= std::max(largest / 16, 0x1p-130F));
}

TEST_CASE("what cannot be quantised is refused by name", "[export][fp8]") {
  const std::vector<float> infinite{std::numeric_limits<float>::infinity()};
  CHECK_THROWS_WITH(block_scales(infinite, {1, 1, 1}, Dtype::f32, "w.scale"), Catch::Matchers::Contains("w.scale"));
  CHECK_THROWS_AS(block_scales(std::vector<float>{1}, {1, 1, 1}, Dtype::f16, "w"), InvalidInput);
}

TEST_CASE("NaN stays a code of its own and leaves the block's scale alone", "[export][fp8]") {
  const std::vector<float> values{std::nanf(""), 448, 1, 2};
  const auto scales = block_scales(values, {2, 2, 2}, Dtype::f32, "w");
  CHECK(scales == std::vector<float>{1});
  std::vector<std::byte> codes;
  encode_blocks(values, {2, 2, 2}, scales, codes);
  CHECK(codes == std::vector<std::byte>{std::byte{0x7F}, std::byte{0x7E}, std::byte{0x38}, std::byte{0x40}});
}
