// One weight: its bytes to a tensor, dequantised where it is packed.

#include "forward/load_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "forward/cuda_library.h"
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
  const at::Tensor values = round ? raw.to(at::kBFloat16) : raw;
  const bool multiplied_as_it_is = conversion.matrix && values.dim() == 2 && values.scalar_type() == at::kBFloat16 &&
                                   conversion.type == at::kFloat && conversion.device.is_cpu();
  return multiplied_as_it_is ? values : values.to(conversion.device, conversion.type);
}

at::Tensor view_bytes(const Tensor& tensor, const std::byte* bytes, at::IntArrayRef shape, const Conversion& conversion) {
  if (conversion.copy != nullptr) {
    const auto size = c10::multiply_integers(shape) * static_cast<std::int64_t>(c10::elementSize(scalar_type(tensor)));
    return conversion.copy->at(bytes, size).view(scalar_type(tensor)).view(shape);
  }
  // from_blob wants a mutable pointer; nothing writes through it.
  return at::from_blob(const_cast<std::byte*>(bytes), shape, at::TensorOptions().dtype(scalar_type(tensor)));
}

/// What a device can decode: codes of a byte or half a byte that are multiplied by a scale.
std::optional<cuda::Code> code_of(const StoredMatrix& matrix) {
  switch (matrix.packing.kind) {
    case PackingKind::fp8: return matrix.parts[Part::values]->dtype == Dtype::f8_e4m3 ? cuda::Code::e4m3 : cuda::Code::e5m2;
    case PackingKind::mxfp4:
    case PackingKind::nvfp4: return cuda::Code::e2m1;
    default: return std::nullopt;
  }
}

/// [N, K] bf16. The scales are checked on the host, and few.
at::Tensor decoded_on_device(const StoredMatrix& matrix, cuda::Code code, const Conversion& conversion) {
  const Packing& packing = matrix.packing;
  const std::vector<float> scales = dequantise_scales(matrix.parts, packing);
  const std::int64_t size = packing.rows * packing.cols / (code == cuda::Code::e2m1 ? 2 : 1);
  at::Tensor out = at::empty({packing.rows, packing.cols}, at::TensorOptions().dtype(at::kBFloat16).device(conversion.device));
  conversion.copy->dequantise(code, conversion.copy->at(matrix.parts[Part::values]->bytes, size),
                              queue_to(conversion.device, at::tensor(scales)), packing.scale_rows, packing.scale_cols, out);
  return out;
}

at::Tensor dequantised(StoredMatrix& matrix, const PartBytes& bytes, const Conversion& conversion) {
  for (std::size_t part = 0; part < kPartCount; ++part) {
    auto& stored = matrix.parts[static_cast<Part>(part)];
    if (stored) stored->bytes = bytes[part];
  }
  const bool as_bf16 = conversion.numerics.precision == Precision::bf16 && !conversion.exact;
  if (const auto code = code_of(matrix); code && as_bf16 && conversion.copy != nullptr) {
    return convert(decoded_on_device(matrix, *code, conversion), conversion);
  }
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

std::optional<DeviceCopy> DeviceCopy::make(const WeightGroup& group, const WeightBuffer& buffer, const at::Device& device,
                                           bool queued) {
  std::uint64_t size = 0;
  for (const ByteRange& range : group) {
    if (size % 16 != 0) return std::nullopt;
    size += range.size;
  }
  const auto there = at::TensorOptions().dtype(at::kByte).device(device);
  const at::Tensor here = at::from_blob(buffer.get(), {static_cast<std::int64_t>(size)}, at::kByte);
  DeviceCopy copy{.host = buffer.get(), .bytes = at::empty(here.sizes(), there), .dequantise = cuda::library().dequantise};
  copy.bytes.copy_(here, queued);
  return copy;
}

at::Tensor queue_to(const at::Device& device, const at::Tensor& values) {
  return device.is_cpu() ? values : values.pin_memory().to(device, /*non_blocking=*/true);
}

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
    return convert(view_bytes(*weight.values(), bytes[0], fused_bias ? shape.slice(1) : shape, conversion), conversion);
  }
  if (weight.packed()) {
    StoredMatrix matrix = stored_matrix(model, weight);
    const at::Tensor values = dequantised(matrix, bytes, conversion);
    return matrix.transposed ? values.t() : values;
  }
  const Tensor& tensor = *weight.values();
  const auto rows = tensor.shape[tensor.shape.size() - 2];
  const auto cols = tensor.shape[tensor.shape.size() - 1];
  const at::Tensor values = convert(view_bytes(tensor, bytes[0], {rows, cols}, conversion), conversion);
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
    return convert(view_bytes(above, first_bytes[0], {above.shape[0] + below.shape[0], above.shape[1]}, conversion), conversion);
  }
  return at::cat({load_weight(model, first, first_bytes, conversion), load_weight(model, second, second_bytes, conversion)}, 0);
}

}  // namespace moetrim
