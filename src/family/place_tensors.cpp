// Gives every tensor of the checkpoint its place in the model, and checks shapes and completeness.

#include "family/place_tensors.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "family/name_pattern.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

using enum Role;

std::string checkpoint_name(const Model& model) { return model.checkpoint->folder().string(); }

bool is_per_expert(Role role) { return role == expert_gate || role == expert_up || role == expert_down; }

/// True for tensors that only an MoE layer has.
bool needs_moe_layer(Role role) { return role >= router; }
bool needs_dense_layer(Role role) { return role == dense_gate || role == dense_up || role == dense_down; }

void check_shape(const Model& model, const Tensor& tensor, const TensorRule& rule) {
  std::vector<std::int64_t> expected;
  for (const Axis axis : rule.axes) expected.push_back(model.length(axis));
  if (tensor.shape == expected) return;
  throw InvalidInput(fmt::format("{}: tensor {} has shape [{}], expected [{}] from config.json", checkpoint_name(model),
                                 tensor.name, fmt::join(tensor.shape, ", "), fmt::join(expected, ", ")));
}

/// Tensors that carry nothing a loader uses, met in old checkpoints.
bool is_derived(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

/// An unknown tensor of an MoE layer may hold one row per expert, and would be left behind when experts go.
void refuse_expert_axis(const Model& model, const Tensor& tensor) {
  const bool named = tensor.name.find(".experts.") != std::string::npos;
  const bool shaped = !tensor.shape.empty() && tensor.shape[0] == model.experts &&
                      (tensor.name.find(".mlp.") != std::string::npos || tensor.name.find("moe") != std::string::npos);
  if (named || shaped) {
    throw InvalidInput(fmt::format("{}: tensor {} [{}] has an expert axis but is unknown to family {}; it would not follow "
                                   "when experts are removed", checkpoint_name(model), tensor.name,
                                   fmt::join(tensor.shape, ", "), model.family->name));
  }
}

TensorPlace find_place(const Model& model, const Tensor& tensor) {
  for (const TensorRule& rule : model.family->tensors) {
    const auto numbers = match_name(rule.name, tensor.name);
    if (numbers) return {&rule, numbers->layer, numbers->expert};
  }
  if (!is_derived(tensor.name)) refuse_expert_axis(model, tensor);
  return {};
}

[[noreturn]] void refuse(const Model& model, const Tensor& tensor, std::string_view why) {
  throw InvalidInput(fmt::format("{}: tensor {} {}", checkpoint_name(model), tensor.name, why));
}

void put(Model& model, const Tensor& tensor, const TensorPlace& place) {
  const Role role = place.rule->role;
  const auto index = static_cast<std::size_t>(role);
  if (place.layer < 0) {
    model.global[index] = &tensor;
    return;
  }
  if (place.layer >= model.layers) refuse(model, tensor, fmt::format("lies beyond the {} layers of config.json", model.layers));
  auto& layer = model.layer[static_cast<std::size_t>(place.layer)];
  if (needs_moe_layer(role) && !layer.sparse) refuse(model, tensor, "belongs to a layer that config.json calls dense");
  if (needs_dense_layer(role) && layer.sparse) refuse(model, tensor, "belongs to a layer that config.json calls MoE");
  if (!is_per_expert(role)) {
    if (layer.by_role[index] != nullptr) refuse(model, tensor, fmt::format("says the same as {}", layer.by_role[index]->name));
    layer.by_role[index] = &tensor;
    return;
  }
  if (place.expert >= model.experts) {
    refuse(model, tensor, fmt::format("numbers an expert beyond the {} of config.json", model.experts));
  }
  layer.experts.resize(static_cast<std::size_t>(model.experts));
  layer.experts[static_cast<std::size_t>(place.expert)][index - static_cast<std::size_t>(expert_gate)] = &tensor;
}

std::string wanted_name(const Model& model, Role role, int layer, int expert) {
  for (const TensorRule& rule : model.family->tensors) {
    if (rule.role == role) return expand_name(rule.name, layer, expert);
  }
  return "?";
}

[[noreturn]] void missing(const Model& model, Role role, int layer, int expert) {
  throw InvalidInput(fmt::format("{}: tensor {} is missing", checkpoint_name(model), wanted_name(model, role, layer, expert)));
}

void check_experts(const Model& model, const LayerTensors& layer, int index) {
  if (layer.fused()) {
    if (layer[fused_down] == nullptr) missing(model, fused_down, index, -1);
    if (!layer.experts.empty()) {
      throw InvalidInput(fmt::format("{}: layer {} has its experts both fused and one by one", checkpoint_name(model), index));
    }
    return;
  }
  if (layer.experts.empty()) missing(model, expert_gate, index, 0);
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    for (std::size_t part = 0; part < 3; ++part) {
      if (layer.experts[e][part] != nullptr) continue;
      missing(model, static_cast<Role>(static_cast<std::size_t>(expert_gate) + part), index, static_cast<int>(e));
    }
  }
}

bool is_expert_role(Role role) { return role >= expert_gate; }

void check_layer(const Model& model, int index) {
  const LayerTensors& layer = model.layer[static_cast<std::size_t>(index)];
  for (const TensorRule& rule : model.family->tensors) {
    const bool global = rule.name.find("{layer}") == std::string_view::npos;
    const bool elsewhere = layer.sparse ? needs_dense_layer(rule.role) : needs_moe_layer(rule.role);
    if (rule.optional || global || elsewhere || is_expert_role(rule.role)) continue;
    if (layer[rule.role] == nullptr) missing(model, rule.role, index, -1);
  }
  if (layer.sparse) check_experts(model, layer, index);
}

}  // namespace

void place_tensors(Model& model) {
  for (const Tensor& tensor : model.checkpoint->tensors()) {
    const TensorPlace place = find_place(model, tensor);
    model.places.push_back(place);
    if (place.rule == nullptr) continue;
    check_shape(model, tensor, *place.rule);
    put(model, tensor, place);
  }
  for (const Role role : {embedding, final_norm}) {
    if (model.global[static_cast<std::size_t>(role)] == nullptr) missing(model, role, -1, -1);
  }
  if (model.global[static_cast<std::size_t>(head)] == nullptr && !model.tied_embeddings) missing(model, head, -1, -1);
  for (int i = 0; i < model.layers; ++i) check_layer(model, i);
}

}  // namespace moetrim
