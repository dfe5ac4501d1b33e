// The weights of a layer.

#include "forward/layer_weights.h"

#include <array>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

using enum Role;

/// In the order of the group: what is joined into one matrix stands together.
constexpr std::array kLayerRoles{input_norm, mlp_norm,   query,      key,        value,       query_bias,  key_bias,  value_bias,
                                 output,     output_bias, query_norm, key_norm,  dense_gate,  dense_up,    dense_down, router,
                                 shared_gate, shared_up, shared_down, shared_router};

ByteRange whole(const Tensor* tensor) { return {tensor, 0, tensor->size}; }

at::Tensor view_bytes(const Tensor& tensor, const std::byte* bytes, at::IntArrayRef shape) {
  // from_blob wants a mutable pointer; nothing writes through it.
  return at::from_blob(const_cast<std::byte*>(bytes), shape, at::TensorOptions().dtype(scalar_type(tensor)));
}

/// Values as the run holds them: in a bf16 run an fp32 weight is rounded first.
at::Tensor convert(const at::Tensor& raw, at::ScalarType type, const Numerics& numerics, const at::Device& device) {
  const bool round = numerics.precision == Precision::bf16 && raw.scalar_type() != at::kBFloat16;
  return (round ? raw.to(at::kBFloat16) : raw).to(device, type);
}

/// Finds the parts of a layer's group again.
class GroupReader {
 public:
  GroupReader(const LayerTensors& layer, const WeightBuffer& bytes, const Numerics& numerics, const at::Device& device)
      : numerics_(numerics), device_(device), layer_(layer) {
    const std::byte* at = bytes.get();
    for (const Role role : kLayerRoles) {
      if (layer[role] == nullptr) continue;
      start_[static_cast<std::size_t>(role)] = at;
      at += layer[role]->size;
    }
  }

  at::Tensor norm(Role role) const { return one(role, at::kFloat); }
  at::Tensor matrix(Role role) const { return one(role, numerics_.tile()); }
  /// Rows of several matrices below one another.
  at::Tensor joined(std::initializer_list<Role> roles) const {
    std::vector<at::Tensor> parts;
    for (const Role role : roles) {
      if (layer_[role] != nullptr) parts.push_back(matrix(role));
    }
    if (parts.empty()) return {};
    return parts.size() == 1 ? parts[0] : at::cat(parts, 0);
  }

 private:
  at::Tensor one(Role role, at::ScalarType type) const {
    const Tensor* tensor = layer_[role];
    if (tensor == nullptr) return {};
    return load_tensor(*tensor, start_[static_cast<std::size_t>(role)], type, numerics_, device_);
  }

  const Numerics& numerics_;
  const at::Device& device_;
  const LayerTensors& layer_;
  std::array<const std::byte*, kRoleCount> start_{};
};

}  // namespace

at::ScalarType scalar_type(const Tensor& tensor) {
  switch (tensor.dtype) {
    case Dtype::f32: return at::kFloat;
    case Dtype::bf16: return at::kBFloat16;
    case Dtype::f16: return at::kHalf;
    default:
      throw InvalidInput(fmt::format("tensor {} is {}; the forward pass reads F32, BF16 and F16 weights", tensor.name,
                                     dtype_name(tensor.dtype)));
  }
}

WeightGroup layer_group(const LayerTensors& layer) {
  WeightGroup group;
  for (const Role role : kLayerRoles) {
    if (layer[role] != nullptr) group.push_back(whole(layer[role]));
  }
  return group;
}

WeightGroup expert_group(const LayerTensors& layer, int expert) {
  if (!layer.fused()) {
    const auto& parts = layer.experts[static_cast<std::size_t>(expert)];
    return {whole(parts[0]), whole(parts[1]), whole(parts[2])};
  }
  WeightGroup group;
  for (const Role role : {fused_gate_up, fused_down}) {
    const Tensor* tensor = layer[role];
    const std::uint64_t size = tensor->size / static_cast<std::uint64_t>(tensor->shape[0]);
    group.push_back({tensor, size * static_cast<std::uint64_t>(expert), size});
  }
  return group;
}

at::Tensor load_tensor(const Tensor& tensor, const std::byte* bytes, at::ScalarType type, const Numerics& numerics,
                       const at::Device& device) {
  const at::Tensor raw = view_bytes(tensor, bytes, tensor.shape);
  const at::Tensor values = convert(raw, type, numerics, device);
  return values.data_ptr() == raw.data_ptr() ? values.clone() : values;
}

HeadWeights load_head(const Model& model, const Numerics& numerics, const at::Device& device) {
  const auto load = [&](Role role, at::ScalarType type) {
    const Tensor& tensor = *model.global[static_cast<std::size_t>(role)];
    return load_tensor(tensor, model.checkpoint->read(tensor).data(), type, numerics, device);
  };
  const bool tied = model.tied_embeddings || model.global[static_cast<std::size_t>(head)] == nullptr;
  return {load(final_norm, at::kFloat), load(tied ? embedding : head, numerics.tile())};
}

LayerWeights load_layer(const LayerTensors& layer, const WeightBuffer& bytes, const Numerics& numerics,
                        const at::Device& device) {
  const GroupReader read(layer, bytes, numerics, device);
  LayerWeights weights;
  weights.input_norm = read.norm(input_norm);
  weights.mlp_norm = read.norm(mlp_norm);
  weights.query_key_value = read.joined({query, key, value});
  weights.query_key_value_bias = read.joined({query_bias, key_bias, value_bias});
  weights.output = read.matrix(output);
  weights.output_bias = read.matrix(output_bias);
  weights.query_norm = read.norm(query_norm);
  weights.key_norm = read.norm(key_norm);
  weights.dense_gate_up = read.joined({dense_gate, dense_up});
  weights.dense_down = read.matrix(dense_down);
  weights.router = read.matrix(router);
  weights.shared_gate_up = read.joined({shared_gate, shared_up});
  weights.shared_down = read.matrix(shared_down);
  weights.shared_router = read.matrix(shared_router);
  return weights;
}

ExpertWeights load_expert(const Model& model, const LayerTensors& layer, const WeightBuffer& bytes, const Numerics& numerics,
                          const at::Device& device) {
  const std::int64_t width = model.expert_width;
  const WeightGroup group = expert_group(layer, 0);
  const std::byte* start = bytes.get();
  const std::byte* down = start + group.front().size + (group.size() == 3 ? group[1].size : 0);
  const Tensor& first = *group.front().tensor;
  const Tensor& last = *group.back().tensor;
  at::Tensor gate_up;
  if (group.size() == 3 && group[1].tensor->dtype != first.dtype) {
    gate_up = at::cat({convert(view_bytes(first, start, {width, model.hidden}), numerics.tile(), numerics, device),
                       convert(view_bytes(*group[1].tensor, start + group[0].size, {width, model.hidden}), numerics.tile(),
                               numerics, device)});
  } else {
    gate_up = convert(view_bytes(first, start, {2 * width, model.hidden}), numerics.tile(), numerics, device);
  }
  return {gate_up, convert(view_bytes(last, down, {model.hidden, width}), numerics.tile(), numerics, device), bytes};
}

}  // namespace moetrim
