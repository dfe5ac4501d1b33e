// Cosines and sines of the rotary embedding.

#include "forward/rotary_table.h"

#include <ATen/ATen.h>

namespace moetrim {

RotaryTable::RotaryTable(const Rope& rope, const Numerics& numerics, const at::Device& device)
    : rope_(rope), numerics_(numerics), device_(device) {}

std::int64_t RotaryTable::key(std::int64_t length) const {
  return rope_.kind == RopeKind::dynamic && length > rope_.max_positions ? length : 0;
}

void RotaryTable::prepare(std::int64_t length) {
  auto& table = tables_[key(length)];
  if (table.first.defined() && table.first.size(0) >= length) return;
  const auto frequencies = inverse_frequencies(rope_, length);
  const at::Tensor inverse = at::tensor(frequencies, at::kFloat);
  const at::Tensor angles = at::arange(length, at::kFloat).unsqueeze(1) * inverse.unsqueeze(0);
  const auto scaled = [&](const at::Tensor& values) {
    const at::Tensor out = values * rope_.attention_factor;
    return (numerics_.precision == Precision::bf16 ? out.to(at::kBFloat16).to(at::kFloat) : out).to(device_);
  };
  table = {scaled(angles.cos()), scaled(angles.sin())};
}

std::pair<at::Tensor, at::Tensor> RotaryTable::rows(std::int64_t length) const {
  const auto& table = tables_.at(key(length));
  return {table.first.slice(0, 0, length), table.second.slice(0, 0, length)};
}

}  // namespace moetrim
