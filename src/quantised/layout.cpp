// Types and shapes of every part of every packing, as the table in quantised.h has them.
#include "layout.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"

namespace moetrim::quantised_detail {
namespace {

std::string shown(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

void expect_dtype(const StoredPart& part, std::initializer_list<Dtype> allowed) {
  if (has_dtype(part, allowed)) return;
  std::vector<std::string_view> names;
  for (const Dtype dtype : allowed) names.push_back(dtype_name(dtype));
  fail(part, fmt::format("expected type {}", fmt::join(names, " or ")));
}

void expect_shape(const StoredPart& part, const std::vector<Shape>& allowed) {
  if (std::ranges::find(allowed, part.shape) != allowed.end()) return;
  std::vector<std::string> texts;
  for (const Shape& shape : allowed) texts.push_back(shown(shape));
  fail(part, fmt::format("expected shape {}", fmt::join(texts, " or ")));
}

/// A scale for all, one per row, or a grid.
std::vector<Shape> grid_shapes(const Packing& packing) {
  const std::int64_t rows = grid_rows(packing);
  const std::int64_t cols = grid_cols(packing);
  std::vector<Shape> shapes{{rows, cols}};
  if (cols == 1) shapes.push_back({rows});
  if (rows == 1 && cols == 1) shapes.push_back({});
  return shapes;
}

void refuse_others(const PackedWeight& weight, PackingKind kind, std::initializer_list<Part> allowed) {
  for (std::size_t i = 0; i < kPartCount; ++i) {
    const auto part = static_cast<Part>(i);
    if (!weight.has(part) || part == Part::values || part == Part::input_scale) continue;
    if (std::ranges::find(allowed, part) != allowed.end()) continue;
    fail(*weight[part], fmt::format("a {} is not part of {} values; either tensor '{}' has the wrong type or this one is "
                                    "left over",
                                    part_name(part), packing_name(kind), weight[Part::values]->name));
  }
}

void check_plain(const PackedWeight& weight, const Packing& packing) {
  const StoredPart& values = *weight[Part::values];
  refuse_others(weight, packing.kind, {});
  expect_dtype(values, {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16});
  expect_shape(values, {{packing.rows, packing.cols}});
}

void check_fp8(const PackedWeight& weight, const Packing& packing) {
  const StoredPart& values = *weight[Part::values];
  const StoredPart& scale = need(weight, Part::scale, packing.kind);
  refuse_others(weight, packing.kind, {Part::scale});
  expect_dtype(values, {Dtype::f8_e4m3, Dtype::f8_e5m2});
  expect_shape(values, {{packing.rows, packing.cols}});
  expect_dtype(scale, {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8_e8m0, Dtype::u8});
  expect_shape(scale, grid_shapes(packing));
}

void check_int8(const PackedWeight& weight, const Packing& packing) {
  const StoredPart& values = *weight[Part::values];
  const StoredPart& scale = need(weight, Part::scale, packing.kind);
  refuse_others(weight, packing.kind, {Part::scale, Part::zeros});
  expect_dtype(values, {Dtype::i8});
  expect_shape(values, {{packing.rows, packing.cols}});
  expect_dtype(scale, {Dtype::f32, Dtype::f16, Dtype::bf16});
  expect_shape(scale, grid_shapes(packing));
  if (weight.has(Part::zeros)) {
    expect_dtype(*weight[Part::zeros], {Dtype::i8});
    expect_shape(*weight[Part::zeros], grid_shapes(packing));
  }
}

void check_fp4(const PackedWeight& weight, const Packing& packing) {
  const bool nvfp4 = packing.kind == PackingKind::nvfp4;
  const StoredPart& values = *weight[Part::values];
  const StoredPart& scale = need(weight, Part::scale, packing.kind);
  if (packing.cols % packing.scale_cols != 0) {
    fail(values, fmt::format("{} columns are not a multiple of {}, the group of {}", packing.cols, packing.scale_cols,
                             packing_name(packing.kind)));
  }
  if (nvfp4) {
    const StoredPart& global = need(weight, Part::global_scale, packing.kind);
    refuse_others(weight, packing.kind, {Part::scale, Part::global_scale});
    expect_dtype(values, {Dtype::u8});
    expect_shape(values, {{packing.rows, packing.cols / 2}});
    expect_dtype(scale, {Dtype::f8_e4m3});
    expect_dtype(global, {Dtype::f32});
    expect_shape(global, {{}, {1}});
    if (!global.name.ends_with("weight_scale_2") && !global.name.ends_with("weight_global_scale")) {
      fail(global, "the name must end in weight_scale_2 (values are multiplied) or weight_global_scale (divided)");
    }
  } else {
    refuse_others(weight, packing.kind, {Part::scale});
    expect_dtype(values, {Dtype::u8, Dtype::i8});
    expect_shape(values, {{packing.rows, packing.cols / 32, 16}, {packing.rows, packing.cols / 2}});
    expect_dtype(scale, {Dtype::u8, Dtype::f8_e8m0});
  }
  expect_shape(scale, {{packing.rows, packing.cols / packing.scale_cols}});
}

void check_order(const PackedWeight& weight, const Packing& packing) {
  if (weight.has(Part::order)) {
    expect_dtype(*weight[Part::order], {Dtype::i32});
    expect_shape(*weight[Part::order], {{packing.cols}});
  } else if (packing.cols % packing.scale_cols != 0) {
    fail(*weight[Part::scale], fmt::format("{} columns are not a multiple of the group size {}, and no tensor says the "
                                           "order of the columns",
                                           packing.cols, packing.scale_cols));
  }
}

void check_gptq(const PackedWeight& weight, const Packing& packing) {
  const StoredPart& values = *weight[Part::values];
  const StoredPart& scale = need(weight, Part::scale, packing.kind);
  const StoredPart& zeros = need(weight, Part::zeros, packing.kind);
  refuse_others(weight, packing.kind, {Part::scale, Part::zeros, Part::order});
  expect_dtype(values, {Dtype::i32});
  expect_shape(values, {{words_for(packing.cols, packing.bits), packing.rows}});
  expect_dtype(scale, {Dtype::f32, Dtype::f16, Dtype::bf16});
  expect_shape(scale, {{grid_cols(packing), packing.rows}});
  expect_dtype(zeros, {Dtype::i32});
  expect_shape(zeros, {{grid_cols(packing), words_for(packing.rows, packing.bits)}});
  check_order(weight, packing);
}

void check_awq(const PackedWeight& weight, const Packing& packing) {
  const StoredPart& values = *weight[Part::values];
  const StoredPart& scale = need(weight, Part::scale, packing.kind);
  const StoredPart& zeros = need(weight, Part::zeros, packing.kind);
  refuse_others(weight, packing.kind, {Part::scale, Part::zeros});
  expect_dtype(values, {Dtype::i32});
  if (packing.rows % 8 != 0) fail(values, fmt::format("{} rows are not a multiple of 8", packing.rows));
  expect_shape(values, {{packing.cols, packing.rows / 8}});
  expect_dtype(scale, {Dtype::f32, Dtype::f16, Dtype::bf16});
  expect_shape(scale, {{grid_cols(packing), packing.rows}});
  expect_dtype(zeros, {Dtype::i32});
  expect_shape(zeros, {{grid_cols(packing), packing.rows / 8}});
  check_order(weight, packing);
}

void check_packed_int(const PackedWeight& weight, const Packing& packing) {
  const StoredPart& values = *weight[Part::values];
  const StoredPart& scale = need(weight, Part::scale, packing.kind);
  refuse_others(weight, packing.kind, {Part::scale, Part::zeros, Part::shape, Part::order});
  expect_dtype(values, {Dtype::i32});
  expect_shape(values, {{packing.rows, words_for(packing.cols, packing.bits)}});
  expect_dtype(scale, {Dtype::f32, Dtype::f16, Dtype::bf16});
  expect_shape(scale, grid_shapes(packing));
  if (weight.has(Part::zeros)) {
    const StoredPart& zeros = *weight[Part::zeros];
    if (packing.scale_rows != 1) fail(zeros, "zeros go with a scale per row or per group, not with one for all");
    expect_dtype(zeros, {Dtype::i32});
    expect_shape(zeros, {{words_for(packing.rows, packing.bits), grid_cols(packing)}});
  }
  if (weight.has(Part::shape)) {
    expect_dtype(*weight[Part::shape], {Dtype::i64, Dtype::i32});
    expect_shape(*weight[Part::shape], {{2}, {3}});  // [E, N, K] beside fused experts
  }
  check_order(weight, packing);
}

}  // namespace

void check_layout(const PackedWeight& weight, const Packing& packing) {
  need(weight, Part::values, packing.kind);
  switch (packing.kind) {
    case PackingKind::plain: return check_plain(weight, packing);
    case PackingKind::fp8: return check_fp8(weight, packing);
    case PackingKind::int8: return check_int8(weight, packing);
    case PackingKind::mxfp4:
    case PackingKind::nvfp4: return check_fp4(weight, packing);
    case PackingKind::gptq: return check_gptq(weight, packing);
    case PackingKind::awq: return check_awq(weight, packing);
    case PackingKind::packed_int: return check_packed_int(weight, packing);
  }
  throw Error("a packing that does not exist");
}

const StoredPart& need(const PackedWeight& weight, Part part, PackingKind kind) {
  if (weight.has(part)) return *weight[part];
  for (std::size_t i = 0; i < kPartCount; ++i) {
    const auto& other = weight[static_cast<Part>(i)];
    if (!other) continue;
    if (part == Part::values) fail(*other, fmt::format("a {} without values", part_name(static_cast<Part>(i))));
    fail(*other, fmt::format("a weight in {} needs a {}, and there is none; is a shard missing?", packing_name(kind),
                             part_name(part)));
  }
  throw Error("a weight without any tensor");
}

void fail(const StoredPart& part, const std::string& problem) {
  throw InvalidInput(
      fmt::format("tensor '{}': {} (type {}, shape {})", part.name, problem, dtype_name(part.dtype), shown(part.shape)));
}

bool has_dtype(const StoredPart& part, std::initializer_list<Dtype> allowed) {
  return std::ranges::find(allowed, part.dtype) != allowed.end();
}

bool is_e8m0(const StoredPart& part) { return has_dtype(part, {Dtype::f8_e8m0, Dtype::u8}); }

}  // namespace moetrim::quantised_detail
