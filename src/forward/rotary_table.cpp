// Cosines and sines of the rotary embedding.

#include "forward/rotary_table.h"

#include <ATen/ATen.h>

namespace moetrim {

RotaryTable::RotaryTable(const Model& model, const Numerics& numerics, const at::Device& device)
    : rope_(model.rope),
      pairs_(model.rope_pairs),
      in_fp32_(model.family->attention.rope_in_fp32),
      numerics_(numerics),
      device_(device) {}

std::int64_t RotaryTable::key(std::int64_t length) const {
  if (rope_.kind == RopeKind::dynamic && length > rope_.max_positions) return length;
  return rope_.kind == RopeKind::longrope && length > rope_.original_max_positions ? 1 : 0;
}

void RotaryTable::prepare(std::int64_t length) {
  auto& table = tables_[key(length)];
  if (table.first.defined() && table.first.size(0) >= length) return;
  const auto frequencies = inverse_frequencies(rope_, length);
  const at::Tensor inverse = at::tensor(frequencies, at::kFloat).to(numerics_.wide());
  const at::Tensor angles = at::arange(length, inverse.options()).unsqueeze(1) * inverse.unsqueeze(0);
  const bool round = numerics_.precision == Precision::bf16 && !in_fp32_;
  const auto scaled = [&](const at::Tensor& values) {
    const at::Tensor out = values * rope_attention_factor(rope_, length);
    return (round ? out.to(at::kBFloat16).to(at::kFloat) : out).to(device_);
  };
  table = {scaled(angles.cos()), scaled(angles.sin())};
}

kernels::Rotation RotaryTable::rows(std::int64_t past, std::int64_t length) const {
  const auto& table = tables_.at(key(past + length));
  return {.cosine = table.first.slice(0, past, past + length),
          .sine = table.second.slice(0, past, past + length),
          .pairs = pairs_,
          .in_fp32 = in_fp32_};
}

}  // namespace moetrim
