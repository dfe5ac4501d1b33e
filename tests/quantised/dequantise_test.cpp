// One weight of every packing with numbers worked out by hand.
#include <cmath>
#include <limits>

#include "given.h"
#include "moetrim/quantised.h"
#include "quantised/given_weight.h"
#include "testing.h"

using namespace moetrim;
using given::meaning;
using given::thrown_by;
using given::values;
using given::Weight;
using Floats = std::vector<float>;
using Bytes = std::vector<std::uint8_t>;
using Words = std::vector<std::uint32_t>;
using Halves = std::vector<std::uint16_t>;

namespace {

constexpr std::uint16_t kHalfOne = 0x3C00, kHalfTwo = 0x4000, kHalfQuarter = 0x3400;  // F16

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("plain values are only converted") {
  Weight half;
  half.with<std::uint16_t>(".weight", Dtype::f16, {1, 4}, {0x3C00, 0x0001, 0xFBFF, 0x8000});
  const Floats got = values(half.weight, {}, 1, 4);
  CHECK(got == Floats{1.0F, 0x1p-24F, -65504.0F, -0.0F});
  CHECK(std::signbit(got[3]));
  Weight brain;
  brain.with<std::uint16_t>(".weight", Dtype::bf16, {2, 1}, {0x3F80, 0xC049});
  CHECK(values(brain.weight, {}, 2, 1) == Floats{1.0F, -3.140625F});
  Weight wide;
  wide.with<double>(".weight", Dtype::f64, {1, 2}, {0.1, 1e300});
  CHECK(values(wide.weight, {}, 1, 2) == Floats{0.1F, std::numeric_limits<float>::infinity()});
}

TEST_CASE("fp8 e4m3 in blocks: the last ones end early") {
  // 0x38 = 1, 0x7E = 448, 0x01 = 2^-9, 0xB8 = -1; blocks of 2 x 2 over 3 x 3.
  Weight weight;
  weight.with<std::uint8_t>(".weight", Dtype::f8_e4m3, {3, 3}, {0x38, 0x7E, 0x38, 0x01, 0xB8, 0x38, 0x38, 0x38, 0x38});
  weight.with<float>(".weight_scale_inv", Dtype::f32, {2, 2}, {2, 3, 5, 7});
  const auto config = meaning(R"({"quant_method": "fp8", "weight_block_size": [2, 2]})");
  CHECK(values(weight.weight, config, 3, 3) == Floats{2, 896, 3, 0x1p-8F, -2, 3, 5, 5, 7});
}

TEST_CASE("fp8: denormals are exact, NaN stays, e5m2 has infinity") {
  Weight small;
  small.with<std::uint8_t>(".weight", Dtype::f8_e4m3, {1, 4}, {0x07, 0x80, 0x7F, 0xFF});
  small.with<float>(".weight_scale", Dtype::f32, {}, {1});
  const Floats got = values(small.weight, meaning(R"({"quant_method": "fp8"})"), 1, 4);
  CHECK(got[0] == 0x7p-9F);
  CHECK((got[1] == 0 && std::signbit(got[1])));
  CHECK((std::isnan(got[2]) && std::isnan(got[3])));
  Weight wide;
  wide.with<std::uint8_t>(".weight", Dtype::f8_e5m2, {2, 2}, {0x7C, 0xFC, 0x01, 0x7D});
  wide.with<std::uint16_t>(".weight_scale", Dtype::bf16, {2, 1}, {0x4000, 0x3F80});  // 2, 1
  const Floats more = values(wide.weight, meaning(R"({"quant_method": "fp8"})"), 2, 2);
  CHECK((std::isinf(more[0]) && more[1] == -more[0] && more[2] == 0x1p-16F && std::isnan(more[3])));
}

TEST_CASE("fp8 scales may be powers of two in one byte") {
  Weight weight;
  weight.with<std::uint8_t>(".weight", Dtype::f8_e4m3, {2, 1}, {0x38, 0x40});
  weight.with<std::uint8_t>(".weight_scale_inv", Dtype::f8_e8m0, {2, 1}, {127, 120});
  CHECK(values(weight.weight, meaning(R"({"quant_method": "fp8"})"), 2, 1) == Floats{1, 0x1p-6F});
}

TEST_CASE("int8 per row, with zeros") {
  Weight weight;
  weight.with<std::int8_t>(".weight", Dtype::i8, {2, 2}, {-128, 127, 3, -3});
  weight.with<float>(".weight_scale", Dtype::f32, {2, 1}, {0.5F, 2});
  const auto config = meaning(R"({"quant_method": "compressed-tensors", "format": "int-quantized"})");
  CHECK(values(weight.weight, config, 2, 2) == Floats{-64, 63.5F, 6, -6});
  weight.with<std::int8_t>(".weight_zero_point", Dtype::i8, {2, 1}, {2, -1});
  CHECK(values(weight.weight, config, 2, 2) == Floats{-65, 62.5F, 8, -4});
}

TEST_CASE("mxfp4: low nibble first, and the table of values") {
  Weight weight;
  Bytes bytes(16);
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<std::uint8_t>((2 * i) | (2 * i + 1) << 4U);  // 0, 1, 2, ...
  weight.with("_proj_blocks", Dtype::u8, {1, 1, 16}, bytes).with<std::uint8_t>("_proj_scales", Dtype::u8, {1, 1}, {128});
  const Floats got = values(weight.weight, meaning(R"({"quant_method": "mxfp4"})"), 1, 32);
  const Floats expected{0, 1, 2, 3, 4, 6, 8, 12, -0.0F, -1, -2, -3, -4, -6, -8, -12};
  CHECK(Floats(got.begin(), got.begin() + 16) == expected);
  CHECK(Floats(got.begin() + 16, got.end()) == Floats(16, 0.0F));
}

TEST_CASE("nvfp4: compressed-tensors divides by the global scale, modelopt multiplies") {
  const Bytes codes(8, 0x72);  // 1, 6
  Weight compressed, modelopt;
  compressed.with(".weight_packed", Dtype::u8, {1, 8}, codes).with<std::uint8_t>(".weight_scale", Dtype::f8_e4m3, {1, 1}, {0x40});
  compressed.with<float>(".weight_global_scale", Dtype::f32, {1}, {4});
  const auto got = values(compressed.weight, meaning(R"({"quant_method": "compressed-tensors"})"), 1, 16);
  CHECK((got[0] == 0.5F && got[1] == 3));
  modelopt.with(".weight", Dtype::u8, {1, 8}, codes).with<std::uint8_t>(".weight_scale", Dtype::f8_e4m3, {1, 1}, {0x40});
  modelopt.with<float>(".weight_scale_2", Dtype::f32, {}, {4});
  const auto more = values(modelopt.weight, meaning(R"({"quant_method": "modelopt"})"), 1, 16);
  CHECK((more[0] == 8 && more[1] == 48));
}

TEST_CASE("gptq: version 1 stores zeros less 1, version 2 does not") {
  // 4 bits, 32 columns, 1 row: codes 0, 1, ..., 7 in every word; stored zero 2; scale 1/4.
  Weight weight;
  weight.with<std::uint32_t>(".qweight", Dtype::i32, {4, 1}, Words(4, 0x76543210));
  weight.with<std::uint32_t>(".qzeros", Dtype::i32, {1, 1}, {2}).with<std::uint16_t>(".scales", Dtype::f16, {1, 1}, {kHalfQuarter});
  const Floats old = values(weight.weight, meaning(R"({"quant_method": "gptq", "bits": 4, "group_size": 32})"), 1, 32);
  CHECK((old[0] == -0.75F && old[3] == 0 && old[7] == 1 && old[31] == 1));
  const Floats now = values(
      weight.weight, meaning(R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"})"), 1, 32);
  CHECK((now[0] == -0.5F && now[2] == 0 && now[31] == 1.25F));
}

TEST_CASE("gptq: columns out of order name their group") {
  Weight weight;
  weight.with<std::uint32_t>(".qweight", Dtype::i32, {4, 1}, Words(4, 0x33333333));
  weight.with<std::uint32_t>(".qzeros", Dtype::i32, {2, 1}, {0, 1});  // 1 and 2
  weight.with<std::uint16_t>(".scales", Dtype::f16, {2, 1}, {kHalfOne, kHalfTwo});
  std::vector<std::int32_t> order(32, 1);
  order[5] = 0;
  weight.with(".g_idx", Dtype::i32, {32}, order);
  const auto config = meaning(R"({"quant_method": "gptq", "bits": 4, "group_size": 16})");
  const Floats got = values(weight.weight, config, 1, 32);
  CHECK((got[4] == (3 - 2) * 2 && got[5] == 3 - 1 && got[6] == (3 - 2) * 2));
  for (const std::int32_t wrong : {-1, 2}) {
    order[7] = wrong;
    weight.with(".g_idx", Dtype::i32, {32}, order);
    CHECK(contains(thrown_by([&] { values(weight.weight, config, 1, 32); }), "InvalidInput: tensor 'm.g_idx': column 7"));
  }
}

TEST_CASE("gptq: a stored zero of all ones carries like in gptqmodel") {
  // Two rows with zeros 0 and 3: stored as 0x30 - 0x11 = 0x1F, so that adding 0x11 gives 0x30 again.
  Weight weight;
  weight.with<std::uint32_t>(".qweight", Dtype::i32, {4, 2}, Words(8, 0x44444444));
  weight.with<std::uint32_t>(".qzeros", Dtype::i32, {1, 1}, {0x1F});
  weight.with<std::uint16_t>(".scales", Dtype::f16, {1, 2}, {kHalfOne, kHalfOne});
  const Floats got = values(weight.weight, meaning(R"({"quant_method": "gptq", "bits": 4, "group_size": -1})"), 2, 32);
  CHECK((got[0] == 4 && got[32] == 1));
}

TEST_CASE("awq: nibbles of a word are columns 0 2 4 6 1 3 5 7 of eight rows") {
  Weight weight;  // 8 rows, 1 column
  weight.with<std::uint32_t>(".qweight", Dtype::i32, {1, 1}, {0x76543210});
  weight.with<std::uint32_t>(".qzeros", Dtype::i32, {1, 1}, {0x00000001});  // row 0: 1
  weight.with<std::uint16_t>(".scales", Dtype::f16, {1, 8}, Halves(8, kHalfTwo));
  const auto config = meaning(R"({"quant_method": "awq", "bits": 4, "group_size": -1})");
  CHECK(values(weight.weight, config, 8, 1) == Floats{-2, 8, 2, 10, 4, 12, 6, 14});
}

TEST_CASE("packed_int: stored codes are 2^(bits-1) too large") {
  const auto config = meaning(R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 2, "strategy": "group"}}}})");
  Weight weight;  // 1 row, 6 columns in groups of 2; -8, 7 | 0, 1 | 2, -1
  weight.with<std::uint32_t>(".weight_packed", Dtype::i32, {1, 1}, {0x7A98F0});
  weight.with<float>(".weight_scale", Dtype::f32, {1, 3}, {1, 10, 100});
  weight.with<std::int64_t>(".weight_shape", Dtype::i64, {2}, {1, 6});
  CHECK(values(weight.weight, config, 1, 6) == Floats{-8, 7, 0, 10, 200, -100});
  weight.with<std::uint32_t>(".weight_zero_point", Dtype::i32, {1, 3}, {0x0, 0x9, 0x8});  // -8, 1, 0
  CHECK(values(weight.weight, config, 1, 6) == Floats{0, 15, -10, 0, 200, -100});
  weight.with<std::int64_t>(".weight_shape", Dtype::i64, {2}, {6, 1});
  CHECK(contains(thrown_by([&] { values(weight.weight, config, 1, 6); }), "tensor 'm.weight_shape': says that the weight is [6, 1]"));
}

TEST_CASE("bfloat16 output rounds to nearest, ties to even, and keeps NaN") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Weight weight;
  weight.with<float>(".weight", Dtype::f32, {1, 5}, {1.0F, 0x1.01p0F, 0x1.03p0F, 0x1.010002p0F, nan});
  Halves out(5);
  dequantise_bf16(weight.weight, packing_of(weight.weight, {}, 1, 5), out);
  CHECK(Halves(out.begin(), out.end() - 1) == Halves{0x3F80, 0x3F80, 0x3F82, 0x3F81});
  CHECK((out[4] & 0x7FC0) == 0x7FC0);
  Weight copied;
  copied.with<std::uint16_t>(".weight", Dtype::bf16, {1, 2}, {0x7F81, 0x1234});  // a signalling NaN, untouched
  out.resize(2);
  dequantise_bf16(copied.weight, packing_of(copied.weight, {}, 1, 2), out);
  CHECK(out == Halves{0x7F81, 0x1234});
}

TEST_CASE("a scale that is not finite is refused with its place") {
  const auto fp8 = meaning(R"({"quant_method": "fp8"})");
  for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Weight weight;
    weight.with(".weight", Dtype::f8_e4m3, {2, 3}).with<float>(".weight_scale", Dtype::f32, {2}, {1, wrong});
    CHECK(contains(thrown_by([&] { values(weight.weight, fp8, 2, 3); }), "InvalidInput: tensor 'm.weight_scale': number 1 of"));
  }
  Weight mx;
  mx.with(".weight", Dtype::u8, {1, 16}).with<std::uint8_t>(".weight_scale", Dtype::u8, {1, 1}, {255});
  CHECK(contains(thrown_by([&] { values(mx.weight, fp8, 1, 32); }), "number 0 of this scale is nan"));
  Weight nv;
  nv.with(".weight_packed", Dtype::u8, {1, 8}).with(".weight_scale", Dtype::f8_e4m3, {1, 1});
  nv.with<float>(".weight_global_scale", Dtype::f32, {1}, {0});
  CHECK(contains(thrown_by([&] { values(nv.weight, fp8, 1, 16); }), "tensor 'm.weight_global_scale': is 0"));
}

TEST_CASE("missing bytes and a wrong room are errors of the caller") {
  Weight weight;
  weight.with(".weight", Dtype::bf16, {2, 3});
  const Packing packing = packing_of(weight.weight, {}, 2, 3);
  Floats out(5);
  CHECK(contains(thrown_by([&] { dequantise(weight.weight, packing, out); }), "6 values to write, room for 5"));
  out.resize(6);
  CHECK(contains(thrown_by([&] { dequantise(weight.weight, {}, out); }), "did not come from packing_of"));
  weight.weight[Part::values]->bytes = nullptr;
  CHECK(contains(thrown_by([&] { dequantise(weight.weight, packing, out); }), "no bytes of tensor 'm.weight'"));
  Weight other;
  other.with(".weight", Dtype::bf16, {3, 2});
  CHECK(contains(thrown_by([&] { dequantise(other.weight, packing, out); }), "tensor 'm.weight': expected shape [2, 3]"));
}
