// A whole weight: checks it, reads its scales, and decodes it some rows at a time.
#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "decode.h"
#include "layout.h"
#include "moetrim/error.h"
#include "scales.h"

namespace moetrim {
namespace {

using namespace quantised_detail;

void check(const PackedWeight& weight, const Packing& packing, std::size_t out_size) {
  const bool scaled = packing.kind != PackingKind::plain;
  if (packing.rows < 1 || packing.cols < 1 || (scaled && (packing.scale_rows < 1 || packing.scale_cols < 1))) {
    throw Error("dequantise: the packing did not come from packing_of()");
  }
  check_layout(weight, packing);
  for (std::size_t i = 0; i < kPartCount; ++i) {
    const auto& part = weight[static_cast<Part>(i)];
    if (part && !part->bytes && static_cast<Part>(i) != Part::input_scale) {
      throw Error(fmt::format("dequantise: no bytes of tensor '{}'", part->name));
    }
  }
  const auto wanted = static_cast<std::size_t>(packing.rows) * static_cast<std::size_t>(packing.cols);
  if (out_size != wanted) throw Error(fmt::format("dequantise: {} values to write, room for {}", wanted, out_size));
}

bool in_words(const Packing& packing) {
  return packing.kind == PackingKind::gptq || packing.kind == PackingKind::awq || packing.kind == PackingKind::packed_int;
}

void decode(const PackedWeight& weight, const Packing& packing, const Scales& scales, std::int64_t first,
            std::int64_t count, float* out) {
  (in_words(packing) ? decode_words : decode_bytes)(weight, packing, scales, first, count, out);
}

}  // namespace

void dequantise(const PackedWeight& weight, const Packing& packing, std::span<float> out) {
  check(weight, packing, out.size());
  const Scales scales = read_scales(weight, packing);
  for (std::int64_t row = 0; row < packing.rows; row += kRowsAtOnce) {
    decode(weight, packing, scales, row, std::min(kRowsAtOnce, packing.rows - row), out.data() + row * packing.cols);
  }
}

void dequantise_bf16(const PackedWeight& weight, const Packing& packing, std::span<std::uint16_t> out) {
  check(weight, packing, out.size());
  if (weight[Part::values]->dtype == Dtype::bf16) {
    std::memcpy(out.data(), weight[Part::values]->bytes, out.size_bytes());
    return;
  }
  const Scales scales = read_scales(weight, packing);
  const std::int64_t step = in_words(packing) ? kRowsAtOnce : 4;  // few rows stay in the cache until they are rounded
  std::vector<float> rows(static_cast<std::size_t>(std::min(step, packing.rows) * packing.cols));
  for (std::int64_t row = 0; row < packing.rows; row += step) {
    const std::int64_t count = std::min(step, packing.rows - row);
    decode(weight, packing, scales, row, count, rows.data());
    round_to_bf16(rows.data(), static_cast<std::size_t>(count * packing.cols), out.data() + row * packing.cols);
  }
}

std::vector<float> dequantise_scales(const PackedWeight& weight, const Packing& packing) {
  check(weight, packing, static_cast<std::size_t>(packing.rows) * static_cast<std::size_t>(packing.cols));
  return read_scales(weight, packing).scale;
}

}  // namespace moetrim
