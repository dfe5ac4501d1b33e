// One weight: its bytes to a tensor, dequantised where it is packed.

#include "forward/load_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

at::ScalarType scalar_type(const Tensor& tensor) {
  switch (tensor.dtype) {
    case Dtype::f64: return at::kDouble;
    case Dtype::f32: return at::kFloat;
    case Dtype::bf16: return at::kBFloat16;
    case Dtype::f16: return at::kHalf;
    default:
      throw InvalidInput(fmt::format("tensor {} is {}; expected F32, BF16 or F16 values, or a weight that is quantised in a way "
                                     "that moetrim knows", tensor.name, dtype_name(tensor.dtype)));
  }
}

/// One expert's share of a part: a slice where the part has an expert axis, the whole where one value serves all.
ByteRange range_of(const Tensor& tensor, const Weight& weight, int expert) {
  const bool one_for_all = tensor.shape.empty() || tensor.shape == std::vector<std::int64_t>{1};
  if (expert < 0 || weight.rule->axes[0] != Axis::E || one_for_all) return {&tensor, 0, tensor.size};
  const std::uint64_t size = tensor.size / static_cast<std::uint64_t>(tensor.shape[0]);
  return {&tensor, size * static_cast<std::uint64_t>(expert), size};
}

at::Tensor convert(const at::Tensor& raw, const Conversion& conversion) {
  const bool round = conversion.numerics.precision == Precision::bf16 && !conversion.exact && raw.scalar_type() != at::kBFloat16;
  return (round ? raw.to(at::kBFloat16) : raw).to(conversion.device, conversion.type);
}

at::Tensor view_bytes(const Tensor& tensor, const std::byte* bytes, at::IntArrayRef shape) {
  // from_blob wants a mutable pointer; nothing writes through it.
  return at::from_blob(const_cast<std::byte*>(bytes), shape, at::TensorOptions().dtype(scalar_type(tensor)));
}

at::Tensor dequantised(StoredMatrix& matrix, const PartBytes& bytes, const Conversion& conversion) {
  for (std::size_t part = 0; part < kPartCount; ++part) {
    auto& stored = matrix.parts[static_cast<Part>(part)];
    if (stored) stored->bytes = bytes[part];
  }
  const bool as_bf16 = conversion.numerics.precision == Precision::bf16 && !conversion.exact;
  at::Tensor out = at::empty({matrix.packing.rows, matrix.packing.cols},
                             at::TensorOptions().dtype(as_bf16 ? at::kBFloat16 : at::kFloat));
  const auto count = static_cast<std::size_t>(out.numel());
  if (as_bf16) {
    dequantise_bf16(matrix.parts, matrix.packing, {static_cast<std::uint16_t*>(out.mutable_data_ptr()), count});
  } else {
    dequantise(matrix.parts, matrix.packing, {out.mutable_data_ptr<float>(), count});
  }
  return convert(out, conversion);
}

}  // namespace

void append_ranges(const Weight& weight, int expert, WeightGroup& group) {
  for (const Tensor* part : weight.parts) {
    if (part != nullptr) group.push_back(range_of(*part, weight, expert));
  }
}

PartBytes take_parts(const Weight& weight, int expert, const std::byte*& bytes) {
  PartBytes out{};
  for (std::size_t part = 0; part < kPartCount; ++part) {
    if (weight.parts[part] == nullptr) continue;
    out[part] = bytes;
    bytes += range_of(*weight.parts[part], weight, expert).size;
  }
  return out;
}

at::Tensor load_weight(const Model& model, const Weight& weight, const PartBytes& bytes, const Conversion& conversion) {
  const auto& axes = weight.rule->axes;
  const bool fused_bias = weight.rule->role == Role::fused_gate_up_bias || weight.rule->role == Role::fused_down_bias;
  if (fused_bias || (!weight.fused() && axes.size() != 2)) {
    const at::IntArrayRef shape(weight.values()->shape);
    return convert(view_bytes(*weight.values(), bytes[0], fused_bias ? shape.slice(1) : shape), conversion);
  }
  if (weight.packed()) {
    StoredMatrix matrix = stored_matrix(model, weight);
    const at::Tensor values = dequantised(matrix, bytes, conversion);
    return matrix.transposed ? values.t() : values;
  }
  const Tensor& tensor = *weight.values();
  const auto rows = tensor.shape[tensor.shape.size() - 2];
  const auto cols = tensor.shape[tensor.shape.size() - 1];
  const at::Tensor values = convert(view_bytes(tensor, bytes[0], {rows, cols}), conversion);
  return weight.rule->input_first() ? values.t() : values;
}

Norm make_norm(const Model& model, at::Tensor weight, at::Tensor bias) {
  Norm out{.kind = model.family->norm, .epsilon = model.norm_epsilon, .weight = std::move(weight), .bias = std::move(bias)};
  if (out.kind == NormKind::rms_one_plus && out.weight.defined()) {
    out.weight = out.weight + 1.0;
    out.kind = NormKind::rms_fp32;
  }
  return out;
}

at::Tensor owned(const at::Tensor& values, const PartBytes& bytes) {
  const bool shared = values.data_ptr() == static_cast<const void*>(bytes[0]);
  return shared || !values.is_contiguous() ? values.clone(at::MemoryFormat::Contiguous) : values;
}

at::Tensor load_stacked(const Model& model, const Weight& first, const PartBytes& first_bytes, const Weight& second,
                        const PartBytes& second_bytes, const Conversion& conversion) {
  const Tensor& above = *first.values();
  const Tensor& below = *second.values();
  const bool one_block = !first.packed() && !second.packed() && above.dtype == below.dtype &&
                         second_bytes[0] == first_bytes[0] + above.size;
  if (one_block) {
    return convert(view_bytes(above, first_bytes[0], {above.shape[0] + below.shape[0], above.shape[1]}), conversion);
  }
  return at::cat({load_weight(model, first, first_bytes, conversion), load_weight(model, second, second_bytes, conversion)}, 0);
}

}  // namespace moetrim
