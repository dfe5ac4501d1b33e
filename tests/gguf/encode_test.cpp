// Numbers as ggml stores them: rounding, the edges of types, and what is refused.

#include "testing.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "gguf/export/encode.h"
#include "moetrim/error.h"

using namespace moetrim;
using namespace moetrim::gguf_detail;
using Catch::Matchers::Contains;

namespace {

std::uint16_t half(float value, GgmlType type) {
  std::vector<std::byte> bytes;
  encode(std::span(&value, 1), type, "t", bytes);
  std::uint16_t out = 0;
  REQUIRE(bytes.size() == sizeof out);
  std::memcpy(&out, bytes.data(), sizeof out);
  return out;
}

}  // namespace

TEST_CASE("f16 rounds to the nearest number, ties to even, also where steps are 2^-24") {
  const auto f16 = [](float value) { return half(value, GgmlType::f16); };
  CHECK(f16(1.0F) == 0x3C00);
  CHECK(f16(-2.5F) == 0xC100);
  CHECK(f16(1.0F + 0x1p-11F) == 0x3C00);             // between 0x3C00 and 0x3C01
  CHECK(f16(1.0F + 3 * 0x1p-11F) == 0x3C02);         // between 0x3C01 and 0x3C02
  CHECK(f16(1.0F + 0x1p-11F + 0x1p-20F) == 0x3C01);
  CHECK(f16(0x1p-14F) == 0x0400);                    // the least number with a full significand
  CHECK(f16(0x1p-14F - 0x1p-26F) == 0x0400);
  CHECK(f16(0x1p-24F) == 0x0001);
  CHECK(f16(0x1p-25F) == 0x0000);                    // ties go to even
  CHECK(f16(3 * 0x1p-25F) == 0x0002);
  CHECK(f16(-0.0F) == 0x8000);
  CHECK(f16(65519.0F) == 0x7BFF);
  CHECK_THROWS_WITH(f16(65520.0F), Contains("tensor t") && Contains("65520") && Contains("--dtype"));
}

TEST_CASE("bf16 rounds to the nearest number, ties to even") {
  const auto bf16 = [](float value) { return half(value, GgmlType::bf16); };
  CHECK(bf16(1.0F) == 0x3F80);
  CHECK(bf16(std::bit_cast<float>(0x3F808000U)) == 0x3F80);
  CHECK(bf16(std::bit_cast<float>(0x3F818000U)) == 0x3F82);
  CHECK(bf16(std::bit_cast<float>(0x3F808001U)) == 0x3F81);
  CHECK(bf16(std::bit_cast<float>(0x7F7F7FFFU)) == 0x7F7F);
  CHECK_THROWS_AS(bf16(std::bit_cast<float>(0x7F7FFFFFU)), InvalidInput);  // would round to infinity
}

TEST_CASE("q8_0 has a scale for 32 values, and halves go away from zero") {
  std::vector<float> values(64, 0.0F);
  values[32] = -127.0F;  // scale 1
  values[33] = 2.5F;
  values[34] = -2.5F;
  values[35] = 2.49F;
  std::vector<std::byte> bytes;
  encode(values, GgmlType::q8_0, "t", bytes);
  REQUIRE(bytes.size() == 2 * 34);
  for (std::size_t i = 0; i < 34; ++i) CHECK(bytes[i] == std::byte{0});
  const auto code = [&](std::size_t i) { return static_cast<int>(static_cast<std::int8_t>(bytes[34 + 2 + i])); };
  CHECK((bytes[34] == std::byte{0x00} && bytes[35] == std::byte{0x3C}));
  CHECK(code(0) == -127);
  CHECK(code(1) == 3);
  CHECK(code(2) == -3);
  CHECK(code(3) == 2);
  CHECK(code(4) == 0);
}

TEST_CASE("What is no number is refused whatever the type") {
  for (const GgmlType type : {GgmlType::f32, GgmlType::f16, GgmlType::bf16, GgmlType::q8_0}) {
    std::vector<float> values(32, 1.0F);
    std::vector<std::byte> bytes;
    values[7] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_WITH(encode(values, type, "blk.0.t", bytes), Contains("blk.0.t") && Contains("NaN"));
    values[7] = -std::numeric_limits<float>::infinity();
    CHECK_THROWS_WITH(encode(values, type, "blk.0.t", bytes), Contains("infinite"));
  }
}
