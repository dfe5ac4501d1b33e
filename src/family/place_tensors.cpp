// Gives every tensor of the checkpoint its place in the model, and checks shapes and completeness.

#include "family/place_tensors.h"

#include <algorithm>
#include <array>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "family/check_weights.h"
#include "family/name_pattern.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

using enum Role;

std::string checkpoint_name(const Model& model) { return model.checkpoint->folder().string(); }

[[noreturn]] void refuse(const Model& model, const Tensor& tensor, std::string_view why) {
  throw InvalidInput(fmt::format("{}: tensor {} {}", checkpoint_name(model), tensor.name, why));
}

/// An unknown tensor of an MoE layer may hold one row per expert, and would be left behind when experts go.
void refuse_expert_axis(const Model& model, const Tensor& tensor) {
  const bool named = tensor.name.find(".experts.") != std::string::npos;
  const bool shaped = !model.family->leaves_untouched(tensor.name) && std::find(tensor.shape.begin(), tensor.shape.end(), model.experts) != tensor.shape.end() &&
                      (tensor.name.find(".mlp.") != std::string::npos || tensor.name.find("moe") != std::string::npos ||
                       tensor.name.find(".feed_forward.") != std::string::npos);
  if (named || shaped) {
    refuse(model, tensor, fmt::format("[{}] has an expert axis but is unknown to family {}; it would not follow when experts "
                                      "are removed", fmt::join(tensor.shape, ", "), model.family->name));
  }
}

/// A tensor's name, and those that its weight would have if it were not quantised; made once for all rules.
class PlainNames {
 public:
  explicit PlainNames(const Tensor& tensor) : name_(tensor.name) {
    const auto part = split_part(tensor.name);
    if (!part) return;
    part_ = part->part;
    module_ = part->module;
    weight_ = module_ + ".weight";
  }

  std::optional<TensorPlace> match(const Model& model, const TensorRule& rule) const {
    auto numbers = match_name(rule.name, name_);
    const bool whole = numbers.has_value();
    if (!whole && !module_.empty()) {
      numbers = match_name(rule.name, weight_);
      if (!numbers) numbers = match_name(rule.name, module_);
    }
    if (!numbers) return std::nullopt;
    int layer = numbers->layer;
    if (numbers->mtp >= 0) layer = static_cast<int>(model.layers) + numbers->mtp;
    if (layer < 0 && where_of(rule.role) == Where::mtp) layer = static_cast<int>(model.layers);
    return TensorPlace{&rule, layer, numbers->expert, whole ? Part::values : part_};
  }

 private:
  const std::string& name_;
  std::string module_, weight_;  ///< empty where the name does not end like a part of a weight
  Part part_ = Part::values;
};

/// Several rules may have the same name: fused experts are met stored either way round. The shape decides.
TensorPlace find_place(const Model& model, const Tensor& tensor) {
  const PlainNames names(tensor);
  std::optional<TensorPlace> first;
  for (const TensorRule& rule : model.family->tensors) {
    const auto place = names.match(model, rule);
    if (!place) continue;
    if (model.shape(rule, place->layer) == tensor.shape) return *place;
    if (!first) first = place;
  }
  if (first) return *first;
  if (!is_derived(tensor.name)) refuse_expert_axis(model, tensor);
  return {};
}

void put_part(const Model& model, Weight& weight, const Tensor& tensor, const TensorPlace& place) {
  const Tensor*& slot = weight.parts[static_cast<std::size_t>(place.part)];
  if (slot != nullptr) refuse(model, tensor, fmt::format("says the same as {}", slot->name));
  slot = &tensor;
  if (place.part == Part::values || weight.rule == nullptr) weight.rule = place.rule;
  weight.layer = place.layer;
}

void check_layer_kind(const Model& model, const Tensor& tensor, const LayerTensors& layer, Where where) {
  const bool experts = where == Where::moe || where == Where::experts;
  if (experts && !layer.sparse) refuse(model, tensor, "belongs to a layer that config.json calls dense");
  if (where == Where::dense && layer.sparse) refuse(model, tensor, "belongs to a layer that config.json calls MoE");
  if (where == Where::attention && layer.delta_net) refuse(model, tensor, "belongs to a layer that config.json calls linear");
  if (where == Where::delta_net && !layer.delta_net) refuse(model, tensor, "belongs to a layer that config.json calls attention");
  if (where == Where::mtp && !layer.mtp) refuse(model, tensor, "belongs to a multi-token-prediction block, but this is none");
}

void put(Model& model, const Tensor& tensor, const TensorPlace& place) {
  const Role role = place.rule->role;
  if (place.layer < 0) return put_part(model, model.global[static_cast<std::size_t>(role)], tensor, place);
  if (place.layer >= static_cast<int>(model.layer.size())) {
    refuse(model, tensor, fmt::format("lies beyond the {} layers of config.json", model.layers));
  }
  auto& layer = model.layer[static_cast<std::size_t>(place.layer)];
  check_layer_kind(model, tensor, layer, where_of(role));
  if (place.expert < 0) return put_part(model, layer.by_role[static_cast<std::size_t>(role)], tensor, place);
  const std::int64_t experts = model.experts_in(place.layer);
  if (place.expert >= experts) {
    refuse(model, tensor, fmt::format("numbers an expert beyond the {} of {}", experts, layer.mtp ? "its router" : "config.json"));
  }
  layer.experts.resize(static_cast<std::size_t>(experts));
  auto& expert = layer.experts[static_cast<std::size_t>(place.expert)];
  put_part(model, expert[static_cast<std::size_t>(role) - static_cast<std::size_t>(expert_gate)], tensor, place);
}

std::string wanted_name(const Model& model, Role role, int layer, int expert) {
  for (const TensorRule& rule : model.family->tensors) {
    if (rule.role == role) return expand_name(rule.name, layer, expert);
  }
  return fmt::format("of role {}", static_cast<int>(role));
}

[[noreturn]] void missing(const Model& model, Role role, int layer, int expert) {
  throw InvalidInput(fmt::format("{}: tensor {} is missing", checkpoint_name(model), wanted_name(model, role, layer, expert)));
}

void check_experts(const Model& model, const LayerTensors& layer, int index) {
  if (layer.fused()) {
    if (!layer[fused_down]) missing(model, fused_down, index, -1);
    if (!layer.experts.empty()) {
      throw InvalidInput(fmt::format("{}: layer {} has its experts both fused and one by one", checkpoint_name(model), index));
    }
    return;
  }
  if (layer.experts.empty()) missing(model, expert_gate, index, 0);
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    for (std::size_t part = 0; part < 3; ++part) {
      if (layer.experts[e][part]) continue;
      missing(model, static_cast<Role>(static_cast<std::size_t>(expert_gate) + part), index, static_cast<int>(e));
    }
  }
}

/// Whether a layer must have the tensor of a rule that is not optional.
bool needed(const Model& model, const LayerTensors& layer, const TensorRule& rule) {
  switch (where_of(rule.role)) {
    case Where::model: return false;
    case Where::every_layer: return true;
    case Where::attention: return !layer.delta_net;
    case Where::delta_net: return layer.delta_net;
    case Where::dense: return !layer.sparse;
    case Where::moe: return layer.sparse && (rule.role < shared_gate || model.shared_width > 0);
    case Where::experts: {
      const bool bias = rule.role == fused_gate_up_bias || rule.role == fused_down_bias;
      return bias && layer.sparse && layer.fused();
    }
    case Where::mtp: return layer.mtp;
  }
  return false;
}

void check_layer(const Model& model, int index) {
  const LayerTensors& layer = model.layer[static_cast<std::size_t>(index)];
  for (const TensorRule& rule : model.family->tensors) {
    if (rule.optional || layer[rule.role] || !needed(model, layer, rule)) continue;
    missing(model, rule.role, index, -1);
  }
  if (model.family->attention.latent) {
    for (const Role role : {query_down, query_down_norm, query_up}) {
      if (model.latent.query_rank > 0 && !layer[role]) missing(model, role, index, -1);
    }
    if (model.latent.query_rank == 0 && !layer[query]) missing(model, query, index, -1);
  }
  const bool normed = model.query_key_norm != QueryKeyNorm::none && model.query_key_norm != QueryKeyNorm::unit_after_rope;
  for (const Role role : {query_norm, key_norm}) {
    if (normed && !layer.delta_net && !layer[role]) missing(model, role, index, -1);
  }
  if (layer.sparse) check_experts(model, layer, index);
}

}  // namespace

bool is_cache_scale(std::string_view name) {
  constexpr std::array<std::string_view, 4> kEndings = {".k_scale", ".v_scale", ".q_scale", ".kv_scale"};
  return std::any_of(kEndings.begin(), kEndings.end(), [&](auto ending) { return name.ends_with(ending); });
}

bool is_derived(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq") || is_cache_scale(name); }

void place_tensors(Model& model) {
  for (const Tensor& tensor : model.checkpoint->tensors()) {
    const TensorPlace place = find_place(model, tensor);
    model.places.push_back(place);
    if (place.rule != nullptr) put(model, tensor, place);
  }
  check_weights(model);
  for (const Role role : {embedding, final_norm}) {
    if (!model[role]) missing(model, role, -1, -1);
  }
  if (!model[head] && !model.tied_embeddings) missing(model, head, -1, -1);
  for (int i = 0; i < static_cast<int>(model.layer.size()); ++i) check_layer(model, i);
}

}  // namespace moetrim
