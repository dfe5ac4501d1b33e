// Which layers are MoE, which attend how.

#include "family/layer_kinds.h"

#include <algorithm>

#include <fmt/format.h>

#include "family/name_pattern.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

/// A list of layer numbers, empty where the key is absent.
std::vector<std::int64_t> layer_list(const ConfigReader& config, std::string_view key) {
  std::vector<std::int64_t> out;
  const auto& list = config.raw(key);
  const bool whole = list.is_null() || (list.is_array() && std::all_of(list.begin(), list.end(), [](const auto& entry) {
                       return entry.is_number_integer();
                     }));
  if (!whole) throw InvalidInput(fmt::format("{}: \"{}\" must be a list of layer numbers", config.where(), key));
  for (const auto& entry : list) out.push_back(entry.template get<std::int64_t>());
  return out;
}

bool contains(const std::vector<std::int64_t>& list, std::int64_t layer) {
  return std::find(list.begin(), list.end(), layer) != list.end();
}

bool is_sparse(const Model& model, const ConfigReader& config, std::int64_t layer) {
  switch (model.family->moe_layers) {
    case MoeLayers::all: return true;
    case MoeLayers::sparse_step_and_list: {
      if (contains(layer_list(config, "mlp_only_layers"), layer)) return false;
      const std::int64_t step = config.has("decoder_sparse_step") ? config.integer("decoder_sparse_step", 1, 100000) : 1;
      return (layer + 1) % step == 0;
    }
    case MoeLayers::after_dense: {
      const std::int64_t frequency = config.has("moe_layer_freq") ? config.integer("moe_layer_freq", 1, 100000) : 1;
      return layer >= config.integer_or("first_k_dense_replace", 0) && layer % frequency == 0;
    }
    case MoeLayers::interval: {
      const std::int64_t last = config.integer_or("moe_layer_end_index", -1);
      return (layer + 1) % config.integer_or("moe_layer_interval", 1) == 0 &&
             layer >= config.integer_or("moe_layer_start_index", 1) && (last < 0 || layer <= last);
    }
    case MoeLayers::interleaved: {
      if (config.has("moe_layers")) return contains(layer_list(config, "moe_layers"), layer);
      const std::int64_t step = config.has("interleave_moe_layer_step") ? config.integer("interleave_moe_layer_step", 1, 100000) : 1;
      return layer % step == step - 1;
    }
  }
  throw Error("unknown rule for MoE layers");
}

/// config.layer_types[layer], or nothing when the key is absent.
std::string layer_type(const Model& model, const ConfigReader& config, std::int64_t layer) {
  const auto& types = config.raw("layer_types");
  if (types.is_null()) return {};
  if (!types.is_array() || static_cast<std::int64_t>(types.size()) != model.layers ||
      !types[static_cast<std::size_t>(layer)].is_string()) {
    throw InvalidInput(fmt::format("{}: \"layer_types\" must be a list of {} strings", config.where(), model.layers));
  }
  return types[static_cast<std::size_t>(layer)].get<std::string>();
}

bool has_window(const Model& model, const ConfigReader& config, std::int64_t layer) {
  const std::string type = layer_type(model, config, layer);
  const bool named = type == "sliding_attention";
  switch (model.family->attention.window) {
    case WindowRule::none:
    case WindowRule::chunks: return false;
    case WindowRule::all_layers: return true;
    case WindowRule::when_enabled: return config.boolean_or("use_sliding_window", false);
    case WindowRule::layer_types_when_enabled:
      if (!config.boolean_or("use_sliding_window", false)) return false;
      return type.empty() ? layer % 2 == 0 && layer < config.integer_or("max_window_layers", 28) : named;
    case WindowRule::alternating_layer_types: return type.empty() ? layer % 2 == 0 : named;
    case WindowRule::late_layer_types: return type.empty() ? layer >= config.integer_or("max_window_layers", 62) : named;
  }
  throw Error("unknown rule for windows");
}

bool rotates(const Model& model, const ConfigReader& config, std::int64_t layer) {
  if (!model.family->attention.rope_by_layer) return true;
  // Despite its name the list has a 1 for every layer that rotates.
  const auto list = layer_list(config, "no_rope_layers");
  if (list.empty()) return (layer + 1) % config.integer_or("no_rope_layer_interval", 4) != 0;
  if (static_cast<std::int64_t>(list.size()) != model.layers) {
    throw InvalidInput(fmt::format("{}: \"no_rope_layers\" must have {} entries", config.where(), model.layers));
  }
  return list[static_cast<std::size_t>(layer)] != 0;
}

bool is_delta_net(const Model& model, const ConfigReader& config, std::int64_t layer) {
  if (!model.family->attention.delta_net) return false;
  const std::string type = layer_type(model, config, layer);
  if (type.empty()) return (layer + 1) % config.integer_or("full_attention_interval", 4) != 0;
  return type == "linear_attention";
}

void set_attention(const Model& model, const ConfigReader& config, std::int64_t index, LayerTensors& layer) {
  layer.rotates = rotates(model, config, index);
  layer.delta_net = is_delta_net(model, config, index);
  if (has_window(model, config, index) && config.has("sliding_window")) layer.window = config.integer("sliding_window", 1);
  if (model.family->attention.window == WindowRule::chunks && config.has("attention_chunk_size")) {
    const std::string type = layer_type(model, config, index);
    if (type.empty() ? layer.rotates : type == "chunked_attention") layer.chunk = config.integer("attention_chunk_size", 1);
  }
}

}  // namespace

std::int64_t count_mtp_layers(const Model& model, const ConfigReader& config) {
  std::int64_t count = 0;
  for (const TensorRule& rule : model.family->tensors) {
    if (where_of(rule.role) != Where::mtp) continue;
    for (const Tensor& tensor : model.checkpoint->tensors()) {
      const auto numbers = match_name(rule.name, tensor.name);
      if (!numbers) continue;
      // Blocks after the layers have a layer's number, blocks apart a number of their own; the first may have none.
      count = std::max<std::int64_t>(count, numbers->layer >= 0 ? numbers->layer - model.layers + 1 : 1);
    }
  }
  if (count == 0) return 0;
  const auto key = model.family->mtp_count_key;
  const std::int64_t said = config.has(key) ? config.integer(key, 0, 64) : 1;
  if (count > said) {
    throw InvalidInput(fmt::format("{}: \"{}\" is {}, but the checkpoint has tensors of {} multi-token-prediction blocks",
                                   config.where(), key, said, count));
  }
  return count;
}

std::int64_t count_mtp_experts(const Model& model) {
  for (const TensorRule& rule : model.family->tensors) {
    if (rule.role != Role::router) continue;
    for (const Tensor& tensor : model.checkpoint->tensors()) {
      const auto numbers = match_name(rule.name, tensor.name);
      const bool block = numbers && (numbers->mtp >= 0 || numbers->layer >= model.layers);
      if (block && !tensor.shape.empty()) return tensor.shape[0];
    }
  }
  return model.experts;
}

void set_layer_kinds(Model& model, const ConfigReader& config) {
  model.layer.resize(static_cast<std::size_t>(model.layers + model.mtp_layers));
  for (std::int64_t i = 0; i < model.layers + model.mtp_layers; ++i) {
    auto& layer = model.layer[static_cast<std::size_t>(i)];
    layer.mtp = i >= model.layers;
    layer.sparse = layer.mtp || is_sparse(model, config, i);
    if (!layer.mtp) set_attention(model, config, i, layer);
  }
}

}  // namespace moetrim
