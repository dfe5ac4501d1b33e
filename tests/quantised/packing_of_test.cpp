// Which packing a weight has, and every way in which its tensors may not fit together.
#include "given.h"
#include "moetrim/quantised.h"
#include "quantised/given_weight.h"
#include "testing.h"

using namespace moetrim;
using given::meaning;
using given::thrown_by;
using given::Weight;

namespace {

const char* const kFp8 = R"({"quant_method": "fp8", "weight_block_size": [4, 4]})";
const char* const kGptq = R"({"quant_method": "gptq", "bits": 4, "group_size": 16})";
const char* const kAwq = R"({"quant_method": "awq", "bits": 4, "group_size": 4})";
const char* const kPacked = R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
  "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 8, "strategy": "group"}}}})";
const char* const kModelopt = R"({"quant_method": "modelopt"})";

std::string refusal(const Weight& weight, const char* config, std::int64_t rows, std::int64_t cols) {
  return thrown_by([&] { packing_of(weight.weight, meaning(config), rows, cols); });
}

/// The tensor, and a word of what is wrong with it.
void check_refusal(const std::string& error, const std::string& tensor, const std::string& problem) {
  INFO(error);
  CHECK(error.find("InvalidInput: tensor '" + tensor + "': ") == 0);
  CHECK(error.find(problem) != std::string::npos);
}

}  // namespace

TEST_CASE("no tensor is left without its partner") {
  Weight lone;
  lone.with(".weight", Dtype::f8_e4m3, {4, 4});
  check_refusal(refusal(lone, kFp8, 4, 4), "m.weight", "a weight in fp8 needs a scale");
  Weight orphan;
  orphan.with(".weight_scale_inv", Dtype::f32, {1, 1});
  check_refusal(refusal(orphan, kFp8, 4, 4), "m.weight_scale_inv", "a scale without values");
  Weight mixed;
  mixed.with(".weight", Dtype::bf16, {4, 4}).with(".weight_scale_inv", Dtype::f32, {1, 1});
  check_refusal(refusal(mixed, kFp8, 4, 4), "m.weight_scale_inv", "a scale is not part of plain values");
  Weight nv;
  nv.with(".weight", Dtype::u8, {4, 8}).with(".weight_scale", Dtype::f8_e4m3, {4, 1});
  check_refusal(refusal(nv, kModelopt, 4, 16), "m.weight", "a weight in nvfp4 needs a global scale");
  Weight zeros;
  zeros.with(".qweight", Dtype::i32, {4, 8}).with(".scales", Dtype::f16, {2, 8});
  check_refusal(refusal(zeros, kGptq, 8, 32), "m.qweight", "a weight in gptq needs a zero point");
  Weight surplus;
  surplus.with(".weight", Dtype::f8_e4m3, {4, 4}).with(".weight_scale", Dtype::f32, {1}).with(".weight_zero_point", Dtype::i8, {1});
  check_refusal(refusal(surplus, kFp8, 4, 4), "m.weight_zero_point", "not part of fp8 values");
  CHECK_THROWS_AS(packing_of({}, {}, 4, 4), Error);
}

TEST_CASE("a scale of input does not matter") {
  Weight weight;
  weight.with(".weight", Dtype::bf16, {4, 4}).with(".input_scale", Dtype::f32, {3});
  CHECK(packing_of(weight.weight, {}, 4, 4).kind == PackingKind::plain);
}

TEST_CASE("fp8: the scale's shape picks the blocks") {
  const auto packing = [](given::Shape scale, const char* config = kFp8) {
    Weight weight;
    weight.with(".weight", Dtype::f8_e4m3, {6, 8}).with(".weight_scale", Dtype::f32, std::move(scale));
    return packing_of(weight.weight, meaning(config), 6, 8);
  };
  CHECK((packing({2, 2}).scale_rows == 4 && packing({2, 2}).scale_cols == 4));
  CHECK((packing({}).scale_rows == 6 && packing({1}).scale_cols == 8));
  CHECK((packing({6, 1}).scale_rows == 1 && packing({6}).scale_cols == 8));
  const char* const group =
      R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "group_size": 2}}}})";
  CHECK((packing({6, 4}, group).scale_rows == 1 && packing({6, 4}, group).scale_cols == 2));
}

TEST_CASE("fp8: shapes and types that do not fit") {
  for (const given::Shape& scale : {given::Shape{2, 3}, {3, 2}, {2}, {8}, {1, 6}, {2, 2, 1}, {0}}) {
    Weight weight;
    weight.with(".weight", Dtype::f8_e4m3, {6, 8}).with(".weight_scale", Dtype::f32, scale);
    check_refusal(refusal(weight, kFp8, 6, 8), "m.weight_scale", "is no scale for values [6, 8]");
  }
  Weight turned;
  turned.with(".weight", Dtype::f8_e4m3, {8, 6}).with(".weight_scale", Dtype::f32, {1});
  check_refusal(refusal(turned, kFp8, 6, 8), "m.weight", "expected shape [6, 8]");
  Weight integer;
  integer.with(".weight", Dtype::f8_e4m3, {6, 8}).with(".weight_scale", Dtype::i32, {1});
  check_refusal(refusal(integer, kFp8, 6, 8), "m.weight_scale", "expected type F32 or F16 or BF16");
  Weight other;
  other.with(".weight", Dtype::f8_e4m3fnuz, {6, 8}).with(".weight_scale", Dtype::f32, {1});
  check_refusal(refusal(other, kFp8, 6, 8), "m.weight", "cannot be computed");
  const char* const group =
      R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "group_size": 3}}}})";
  Weight uneven;
  uneven.with(".weight", Dtype::f8_e4m3, {6, 8}).with(".weight_scale", Dtype::f32, {6, 3});
  check_refusal(refusal(uneven, group, 6, 8), "m.weight_scale", "is no scale");
}

TEST_CASE("sizes that are none") {
  Weight weight;
  weight.with(".weight", Dtype::bf16, {0, 4});
  check_refusal(refusal(weight, kFp8, 0, 4), "m.weight", "is empty or too large");
  check_refusal(refusal(weight, kFp8, 4, std::int64_t{1} << 40), "m.weight", "is empty or too large");
  check_refusal(refusal(weight, kFp8, -1, 4), "m.weight", "is empty or too large");
}

TEST_CASE("four bits in bytes: the scale's type tells mxfp4 from nvfp4") {
  Weight mx;
  mx.with(".weight", Dtype::u8, {3, 32}).with(".weight_scale", Dtype::u8, {3, 2});
  CHECK(packing_of(mx.weight, meaning(kModelopt), 3, 64).kind == PackingKind::mxfp4);
  Weight pairs;
  pairs.with(".weight", Dtype::i8, {3, 32}).with(".weight_scale", Dtype::f8_e8m0, {3, 2});
  CHECK(packing_of(pairs.weight, meaning(kFp8), 3, 64).kind == PackingKind::mxfp4);
  Weight plain_scale;
  plain_scale.with(".weight", Dtype::u8, {3, 32}).with(".weight_scale", Dtype::f32, {3, 2});
  check_refusal(refusal(plain_scale, kModelopt, 3, 64), "m.weight_scale", "expected type U8 or F8_E8M0 (mxfp4)");
  Weight odd;
  odd.with("_proj_blocks", Dtype::u8, {3, 1, 16}).with("_proj_scales", Dtype::u8, {3, 1});
  check_refusal(refusal(odd, R"({"quant_method": "mxfp4"})", 3, 40), "m_proj_blocks", "not a multiple of 32");
  Weight few;
  few.with("_proj_blocks", Dtype::u8, {3, 2, 16}).with("_proj_scales", Dtype::u8, {3, 1});
  check_refusal(refusal(few, R"({"quant_method": "mxfp4"})", 3, 64), "m_proj_scales", "expected shape [3, 2]");
  Weight nv;
  nv.with(".weight", Dtype::u8, {3, 8}).with(".weight_scale", Dtype::f8_e4m3, {3, 2}).with(".weight_scale_2", Dtype::f32, {});
  check_refusal(refusal(nv, kModelopt, 3, 16), "m.weight_scale", "expected shape [3, 1]");
  nv.with(".weight_scale", Dtype::f8_e4m3, {3, 1}).with(".weight_scale_2", Dtype::f32, {3});
  check_refusal(refusal(nv, kModelopt, 3, 16), "m.weight_scale_2", "expected shape [] or [1]");
}

TEST_CASE("gptq: bits, groups and words must agree with each other and with config.json") {
  const auto weight = [](given::Shape values, given::Shape scale, given::Shape zeros, Dtype type = Dtype::i32) {
    auto out = std::make_unique<Weight>();
    out->with(".qweight", type, std::move(values)).with(".scales", Dtype::f16, std::move(scale));
    out->with(".qzeros", Dtype::i32, std::move(zeros));
    return out;
  };
  const Packing good = packing_of(weight({4, 8}, {2, 8}, {2, 1})->weight, meaning(kGptq), 8, 32);
  CHECK((good.bits == 4 && good.scale_cols == 16 && good.zeros_minus_one));
  check_refusal(refusal(*weight({8, 4}, {2, 8}, {2, 1}), kGptq, 8, 32), "m.qweight", "expected shape [32");
  check_refusal(refusal(*weight({8, 8}, {2, 8}, {2, 2}), kGptq, 8, 32), "m.qweight", "holds 8 bits");
  check_refusal(refusal(*weight({4, 8}, {4, 8}, {4, 1}), kGptq, 8, 32), "m.scales", "says group_size 16");
  check_refusal(refusal(*weight({4, 8}, {8, 2}, {2, 1}), kGptq, 8, 32), "m.scales", "says group_size 16");
  check_refusal(refusal(*weight({4, 8}, {2, 7}, {2, 1}), kGptq, 8, 32), "m.scales", "expected shape [2, 8]");
  check_refusal(refusal(*weight({4, 8}, {2}, {2, 1}), kGptq, 8, 32), "m.scales", "expected shape [groups, 8]");
  check_refusal(refusal(*weight({4, 8}, {2, 8}, {2, 2}), kGptq, 8, 32), "m.qzeros", "expected shape [2, 1]");
  check_refusal(refusal(*weight({4, 8}, {0, 8}, {0, 1}), kGptq, 8, 32), "m.scales", "from 1 to 32 groups");
  check_refusal(refusal(*weight({5, 8}, {2, 8}, {2, 1}), kGptq, 8, 40), "m.qweight", "not a multiple of 32");
  const char* const group24 = R"({"quant_method": "gptq", "bits": 4, "group_size": 24})";
  check_refusal(refusal(*weight({4, 8}, {2, 8}, {2, 1}), group24, 8, 32), "m.scales", "not a multiple of the group size 24");
  const char* const varies = R"({"quant_method": "gptq", "bits": 4, "group_size": 16, "dynamic": {"x": {"bits": 8}}})";
  CHECK(packing_of(weight({8, 8}, {4, 8}, {4, 2})->weight, meaning(varies), 8, 32).bits == 8);
  check_refusal(refusal(*weight({8, 8}, {5, 8}, {5, 2}), varies, 8, 32), "m.scales", "5 groups do not divide 32 columns");
  auto ordered = weight({4, 8}, {2, 8}, {2, 1});
  ordered->with(".g_idx", Dtype::i32, {31});
  check_refusal(refusal(*ordered, kGptq, 8, 32), "m.g_idx", "expected shape [32]");
  ordered->with(".g_idx", Dtype::i64, {32});
  check_refusal(refusal(*ordered, kGptq, 8, 32), "m.g_idx", "expected type I32");
}

TEST_CASE("awq: words run along the rows") {
  const auto weight = [](given::Shape values, given::Shape scale, given::Shape zeros) {
    auto out = std::make_unique<Weight>();
    out->with(".qweight", Dtype::i32, std::move(values)).with(".scales", Dtype::f16, std::move(scale));
    out->with(".qzeros", Dtype::i32, std::move(zeros));
    return out;
  };
  CHECK(packing_of(weight({8, 2}, {2, 16}, {2, 2})->weight, meaning(kAwq), 16, 8).scale_cols == 4);
  check_refusal(refusal(*weight({1, 16}, {2, 16}, {2, 2}), kAwq, 16, 8), "m.qweight", "expected shape [8, 2]");
  check_refusal(refusal(*weight({8, 2}, {2, 16}, {2, 1}), kAwq, 16, 8), "m.qzeros", "expected shape [2, 2]");
  check_refusal(refusal(*weight({8, 2}, {1, 16}, {1, 2}), kAwq, 16, 8), "m.scales", "says group_size 4");
  check_refusal(refusal(*weight({8, 1}, {2, 12}, {2, 1}), kAwq, 12, 8), "m.qweight", "not a multiple of 8");
  const char* const eight = R"({"quant_method": "awq", "bits": 8, "group_size": 4})";
  check_refusal(refusal(*weight({8, 2}, {2, 16}, {2, 2}), eight, 16, 8), "m.qweight", "says bits 8");
}

TEST_CASE("packed_int: one config group must describe the words") {
  const auto weight = [](given::Shape values, given::Shape scale, Dtype type = Dtype::bf16) {
    auto out = std::make_unique<Weight>();
    out->with(".weight_packed", Dtype::i32, std::move(values)).with(".weight_scale", type, std::move(scale));
    return out;
  };
  const Packing good = packing_of(weight({3, 2}, {3, 2})->weight, meaning(kPacked), 3, 16);
  CHECK((good.kind == PackingKind::packed_int && good.bits == 4 && good.scale_cols == 8));
  check_refusal(refusal(*weight({3, 4}, {3, 2}), kPacked, 3, 16), "m.weight_packed", "no config group");
  check_refusal(refusal(*weight({3, 2}, {3, 4}), kPacked, 3, 16), "m.weight_packed", "no config group");
  check_refusal(refusal(*weight({3, 2}, {3, 1}), kPacked, 3, 16), "m.weight_packed", "no config group");
  check_refusal(refusal(*weight({3, 2}, {3, 3}), kPacked, 3, 16), "m.weight_scale", "groups that divide 16 columns");
  check_refusal(refusal(*weight({3, 2}, {3, 2}, Dtype::f8_e4m3), kPacked, 3, 16), "m.weight_scale", "expected type F32");
  check_refusal(refusal(*weight({3, 2}, {3, 2}), R"({"quant_method": "fp8"})", 3, 16), "m.weight_packed",
                "values in words are of gptq, awq or compressed-tensors");
  auto zeros = weight({3, 2}, {3, 2});
  zeros->with(".weight_zero_point", Dtype::i32, {3, 1});
  check_refusal(refusal(*zeros, kPacked, 3, 16), "m.weight_zero_point", "expected shape [1, 2]");
  const char* const asymmetric = R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 8, "symmetric": false}}}})";
  check_refusal(refusal(*weight({3, 2}, {3, 2}), asymmetric, 3, 16), "m.weight_packed", "and no zeros");
}
