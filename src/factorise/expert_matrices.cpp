// The experts of a layer as matrices, one at a time.

#include "factorise/expert_matrices.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "forward/load_weight.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

/// [N, K] of a weight, of one expert where it is fused.
at::Tensor read_matrix(const Model& model, const Weight& weight, int expert) {
  WeightGroup ranges;
  append_ranges(weight, expert, ranges);
  std::uint64_t size = 0;
  for (const ByteRange& range : ranges) size += range.size;
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  std::span<std::byte> room(bytes);
  for (const ByteRange& range : ranges) {
    model.checkpoint->read(*range.tensor, range.begin, room.first(static_cast<std::size_t>(range.size)));
    room = room.subspan(static_cast<std::size_t>(range.size));
  }
  const std::byte* from = bytes.data();
  const Numerics numerics;
  const at::Device device(at::kCPU);
  const PartBytes parts = take_parts(weight, expert, from);
  const Conversion conversion{.type = at::kFloat, .numerics = numerics, .device = device, .exact = true};
  const at::Tensor values = load_weight(model, weight, parts, conversion);
  // A copy: the values may lie in `bytes`.
  at::Tensor out = values.to(at::kDouble);
  if (!at::isfinite(out).all().item<bool>()) {
    throw InvalidInput(fmt::format("tensor {}: a value is not a finite number", weight.values()->name));
  }
  return out;
}

}  // namespace

at::Tensor expert_matrix(const Model& model, int layer, int expert, Projection projection) {
  const LayerTensors& tensors = model.layer[static_cast<std::size_t>(layer)];
  if (!tensors.fused()) {
    return read_matrix(model, tensors.experts[static_cast<std::size_t>(expert)][static_cast<std::size_t>(projection)], -1);
  }
  if (projection == Projection::down) return read_matrix(model, tensors[Role::fused_down], expert);
  const at::Tensor both = read_matrix(model, tensors[Role::fused_gate_up], expert);
  const std::int64_t width = both.size(0) / 2;
  const std::int64_t which = projection == Projection::gate ? 0 : 1;
  if (model.family->fused_interleaved) return both.slice(0, which, both.size(0), 2);
  return both.slice(0, which * width, (which + 1) * width);
}

}  // namespace moetrim
