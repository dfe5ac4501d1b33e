// The weights of a layer.

#include "forward/layer_weights.h"

#include <array>
#include <optional>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "forward/load_weight.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

using enum Role;

bool is_expert_role(std::size_t role) { return where_of(static_cast<Role>(role)) == Where::experts; }

bool is_behind_router(Role role) {
  switch (role) {
    case dense_gate: case dense_up: case dense_down:
    case shared_gate: case shared_up: case shared_down: case shared_router: return true;
    default: return false;
  }
}

/// Copies of the embedding and the head that a multi-token-prediction block may carry are not needed.
bool is_read(const LayerTensors& layer, std::size_t role, LayerPart part) {
  const auto r = static_cast<Role>(role);
  if (part == LayerPart::to_router && is_behind_router(r)) return false;
  return layer.by_role[role] && !is_expert_role(role) && r != mtp_embedding && r != mtp_head;
}

/// Finds the parts of a layer's group again.
class GroupReader {
 public:
  GroupReader(const Model& model, const LayerTensors& layer, const WeightBuffer& bytes, const Numerics& numerics,
              const at::Device& device, LayerPart part)
      : model_(model), layer_(layer), numerics_(numerics), device_(device), part_(part) {
    if (!device.is_cpu()) copy_ = DeviceCopy::make(layer_group(layer, part), bytes, device, /*queued=*/false);
    const std::byte* at = bytes.get();
    for (std::size_t role = 0; role < kRoleCount; ++role) {
      if (is_read(layer, role, part)) parts_[role] = take_parts(layer.by_role[role], -1, at);
    }
  }

  bool has(Role role) const { return is_read(layer_, static_cast<std::size_t>(role), part_); }
  at::Tensor matrix(Role role) const { return one(role, {.type = numerics_.tile(), .numerics = numerics_, .device = device_, .matrix = true}); }
  at::Tensor vector(Role role) const { return one(role, {.type = numerics_.wide(), .numerics = numerics_, .device = device_}); }
  /// Values that a bf16 run does not round, because the model keeps them in fp32.
  at::Tensor exact(Role role, const at::Device& device) const {
    return one(role, {.type = numerics_.wide(), .numerics = numerics_, .device = device, .exact = true});
  }

  Norm norm(Role weight) const { return make_norm(model_, vector(weight)); }
  Norm norm(Role weight, Role bias) const { return make_norm(model_, vector(weight), vector(bias)); }

  /// Rows of several matrices below one another.
  at::Tensor joined(std::initializer_list<Role> roles) const {
    std::vector<at::Tensor> parts;
    for (const Role role : roles) {
      if (has(role)) parts.push_back(matrix(role));
    }
    if (parts.empty()) return {};
    return parts.size() == 1 ? parts[0] : at::cat(parts, 0);
  }

 private:
  at::Tensor one(Role role, Conversion conversion) const {
    if (!has(role)) return {};
    if (copy_ && conversion.device == device_) conversion.copy = &*copy_;
    const PartBytes& parts = parts_[static_cast<std::size_t>(role)];
    const at::Tensor values = load_weight(model_, layer_[role], parts, conversion);
    return owned(values, parts);
  }

  const Model& model_;
  const LayerTensors& layer_;
  const Numerics& numerics_;
  const at::Device& device_;
  const LayerPart part_;
  std::optional<DeviceCopy> copy_;
  std::array<PartBytes, kRoleCount> parts_{};
};

/// Rows of queries that take turns with the rows of their output gate, head by head: queries first, then gates.
std::vector<at::Tensor> split_output_gate(const Model& model, const at::Tensor& rows) {
  std::vector<std::int64_t> shape{model.heads, 2, model.head_dim};
  if (rows.dim() == 2) shape.push_back(rows.size(1));
  const at::Tensor heads = rows.view(shape);
  std::vector<std::int64_t> flat{model.heads * model.head_dim};
  if (rows.dim() == 2) flat.push_back(rows.size(1));
  return {heads.select(1, 0).reshape(flat), heads.select(1, 1).reshape(flat)};
}

AttentionWeights load_attention(const Model& model, const GroupReader& read) {
  AttentionWeights out;
  out.query_norm = read.norm(query_norm);
  out.key_norm = read.norm(key_norm);
  out.sinks = read.vector(sinks);
  if (!model.family->attention.output_gate) {
    out.query_key_value = read.joined({query, key, value});
    out.query_key_value_bias = read.joined({query_bias, key_bias, value_bias});
    return out;
  }
  const auto queries = split_output_gate(model, read.matrix(query));
  out.query_key_value = at::cat({queries[0], read.matrix(key), read.matrix(value), queries[1]}, 0);
  if (read.has(query_bias)) {
    const auto biases = split_output_gate(model, read.matrix(query_bias));
    out.query_key_value_bias = at::cat({biases[0], read.matrix(key_bias), read.matrix(value_bias), biases[1]}, 0);
  }
  return out;
}

LatentWeights load_latent(const Model& model, const GroupReader& read) {
  LatentWeights out;
  const Role first = model.latent.query_rank > 0 ? query_down : query;
  out.down = read.joined({first, key_value_down});
  if (read.has(key_value_down_bias)) {
    const at::Tensor other = read.matrix(key_value_down_bias);
    const bool biased = first == query_down && read.has(query_down_bias);
    const at::Tensor front = biased ? read.matrix(query_down_bias) : at::zeros({out.down.size(0) - other.size(0)}, other.options());
    out.down_bias = at::cat({front, other}, 0);
  }
  out.query_norm = read.norm(query_down_norm);
  out.key_value_norm = read.norm(key_value_norm);
  // The norms inside latent attention have the class's own epsilon, whatever config.json says.
  out.query_norm.epsilon = out.key_value_norm.epsilon = 1e-6;
  out.query_up = read.matrix(query_up);
  out.key_value_up = read.matrix(key_value_up);
  return out;
}

/// Qwen3-Next keeps query, key, value and z of one key head together; here all queries come first, then all keys, ….
at::Tensor ungrouped(const Model& model, const at::Tensor& rows, std::initializer_list<std::int64_t> per_key_head) {
  const at::Tensor heads = rows.view({model.delta.key_heads, -1, rows.size(1)});
  std::vector<at::Tensor> parts;
  std::int64_t at = 0;
  for (const auto width : per_key_head) {
    parts.push_back(heads.narrow(1, at, width).reshape({-1, rows.size(1)}));
    at += width;
  }
  return at::cat(parts, 0);
}

DeltaWeights load_delta(const Model& model, const GroupReader& read) {
  DeltaWeights out;
  const DeltaSizes& sizes = model.delta;
  if (read.has(delta_qkvz)) {
    const std::int64_t shared = sizes.value_heads / sizes.key_heads;
    const std::int64_t values = shared * sizes.value_dim;
    out.input = at::cat({ungrouped(model, read.matrix(delta_qkvz), {sizes.key_dim, sizes.key_dim, values, values}),
                         ungrouped(model, read.matrix(delta_ba), {shared, shared})}, 0);
  } else {
    out.input = read.joined({delta_qkv, delta_z, delta_b, delta_a});
  }
  out.convolution = read.vector(delta_conv).squeeze(1);
  out.time_bias = read.vector(delta_time_bias);
  out.decay = read.vector(delta_decay);
  // Unlike the other norms of these models, this one has a plain weight.
  out.norm = {.kind = NormKind::rms, .epsilon = model.norm_epsilon, .weight = read.vector(delta_norm), .bias = {}};
  return out;
}

/// Gate rows first: fused weights may have gate and up take turns.
at::Tensor gate_first(const at::Tensor& rows, bool interleaved) {
  if (!interleaved || !rows.defined()) return rows;
  return at::cat({rows.slice(0, 0, std::nullopt, 2), rows.slice(0, 1, std::nullopt, 2)}, 0);
}

}  // namespace

WeightGroup layer_group(const LayerTensors& layer, LayerPart part) {
  WeightGroup group;
  for (std::size_t role = 0; role < kRoleCount; ++role) {
    if (is_read(layer, role, part)) append_ranges(layer.by_role[role], -1, group);
  }
  return group;
}

std::int64_t element_count(const Model& model, const Weight& weight) {
  std::int64_t elements = 1;
  for (const Axis axis : weight.rule->axes) elements *= model.length(axis);
  return elements;
}

constexpr std::array kFusedRoles{fused_gate_up, fused_gate_up_bias, fused_down, fused_down_bias};

WeightGroup expert_group(const LayerTensors& layer, int expert) {
  WeightGroup group;
  if (layer.fused()) {
    for (const Role role : kFusedRoles) {
      if (layer[role]) append_ranges(layer[role], expert, group);
    }
  } else {
    for (const Weight& weight : layer.experts[static_cast<std::size_t>(expert)]) append_ranges(weight, -1, group);
  }
  return group;
}

LayerWeights load_layer(const Model& model, const LayerTensors& layer, const WeightBuffer& bytes, const Numerics& numerics,
                        const at::Device& device, LayerPart part) {
  const GroupReader read(model, layer, bytes, numerics, device, part);
  LayerWeights weights;
  weights.input_norm = read.norm(input_norm, input_norm_bias);
  weights.mlp_norm = read.norm(mlp_norm, mlp_norm_bias);
  if (layer.delta_net) {
    weights.delta = load_delta(model, read);
    weights.output = read.matrix(delta_output);
  } else if (model.family->attention.latent) {
    weights.latent = load_latent(model, read);
    weights.output = read.matrix(output);
  } else {
    weights.attention = load_attention(model, read);
    weights.output = read.matrix(output);
  }
  weights.output_bias = read.matrix(output_bias);
  weights.dense_gate_up = read.joined({dense_gate, dense_up});
  weights.dense_down = read.matrix(dense_down);
  const bool exact = model.family->router.logits_in_fp32;
  weights.router = exact ? read.exact(router, device) : read.matrix(router);
  weights.router_bias = read.matrix(router_bias);
  if (read.has(selection_bias)) weights.selection_bias = read.exact(selection_bias, at::kCPU).flatten().to(at::kFloat);
  if (read.has(router_scale)) weights.router_scale = read.exact(router_scale, at::kCPU).flatten().to(at::kFloat);
  weights.shared_gate_up = read.joined({shared_gate, shared_up});
  weights.shared_down = read.matrix(shared_down);
  weights.shared_router = read.matrix(shared_router);
  if (layer.mtp) {
    weights.mtp = {read.norm(mtp_embedding_norm), read.norm(mtp_hidden_norm), read.norm(mtp_final_norm),
                   read.matrix(mtp_projection)};
  }
  return weights;
}

ExpertWeights load_expert(const Model& model, const LayerTensors& layer, int expert, const WeightBuffer& bytes,
                          const Numerics& numerics, const at::Device& device, bool queued) {
  std::optional<DeviceCopy> copy;
  if (!device.is_cpu()) copy = DeviceCopy::make(expert_group(layer, expert), bytes, device, queued);
  return load_expert(model, layer, expert, bytes, {.type = numerics.tile(), .numerics = numerics, .device = device, .matrix = true,
                                                   .copy = copy ? &*copy : nullptr});
}

ExpertWeights load_expert(const Model& model, const LayerTensors& layer, int expert, const WeightBuffer& bytes,
                          const Conversion& conversion) {
  const std::byte* at = bytes.get();
  if (!layer.fused()) {
    const auto& parts = layer.experts[static_cast<std::size_t>(expert)];
    const PartBytes gate = take_parts(parts[0], -1, at);
    const PartBytes up = take_parts(parts[1], -1, at);
    const at::Tensor gate_up = load_stacked(model, parts[0], gate, parts[1], up, conversion);
    return {gate_up, {}, load_weight(model, parts[2], take_parts(parts[2], -1, at), conversion), {}, bytes};
  }
  std::array<at::Tensor, 4> loaded;
  for (std::size_t i = 0; i < 4; ++i) {
    const Weight& weight = layer[kFusedRoles[i]];
    if (weight) loaded[i] = load_weight(model, weight, take_parts(weight, expert, at), conversion);
  }
  const bool interleaved = model.family->fused_interleaved;
  return {gate_first(loaded[0], interleaved), gate_first(loaded[1], interleaved), loaded[2], loaded[3], bytes};
}

}  // namespace moetrim
