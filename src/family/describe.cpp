// config.json and tensor names to a Model.

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "family/config_reader.h"
#include "family/place_tensors.h"
#include "family/rope.h"
#include "moetrim/error.h"
#include "moetrim/family.h"

namespace moetrim {

namespace {

const Family& find_family(const ConfigReader& config) {
  const std::string name = config.text("model_type");
  std::vector<std::string_view> known;
  for (const Family* family : families()) {
    if (family->name == name) return *family;
    known.push_back(family->name);
  }
  throw InvalidInput(fmt::format("{}: model_type \"{}\" is not a family that moetrim knows; known are {}. docs/add-a-family.md "
                                 "tells how to add one", config.where(), name, fmt::join(known, ", ")));
}

/// All aliases that are present must agree: loaders differ in which one wins.
std::int64_t expert_count(const ConfigReader& config, const Family& family) {
  std::int64_t count = 0;
  std::string_view first;
  for (const auto key : family.expert_count_keys) {
    if (!config.has(key)) continue;
    const std::int64_t value = config.integer(key, 1, 1 << 20);
    if (count != 0 && value != count) {
      throw InvalidInput(fmt::format("{}: \"{}\" is {} but \"{}\" is {}; both count the experts, make them equal",
                                     config.where(), first, count, key, value));
    }
    count = value;
    first = key;
  }
  if (count == 0) {
    throw InvalidInput(fmt::format("{}: no expert count; expected one of {}", config.where(),
                                   fmt::join(family.expert_count_keys, ", ")));
  }
  return count;
}

void read_attention(Model& model, const ConfigReader& config) {
  model.heads = config.integer("num_attention_heads", 1, 1 << 16);
  model.key_value_heads = config.has("num_key_value_heads") ? config.integer("num_key_value_heads", 1, 1 << 16) : model.heads;
  if (model.heads % model.key_value_heads != 0) {
    throw InvalidInput(fmt::format("{}: {} attention heads are not a multiple of {} key-value heads", config.where(),
                                   model.heads, model.key_value_heads));
  }
  model.head_dim = config.has("head_dim") ? config.integer("head_dim", 1, 1 << 16) : model.hidden / model.heads;
  if (model.head_dim < 1) throw InvalidInput(fmt::format("{}: head_dim would be 0", config.where()));
  if (!model.family->clip_key.empty()) model.clip = config.number_or(model.family->clip_key, 0.0);
  model.rope = read_rope(config, model.head_dim, model.family->rope_theta);
}

void read_sizes(Model& model, const ConfigReader& config) {
  const Family& family = *model.family;
  constexpr std::int64_t kLargest = 1 << 28;
  model.layers = config.integer("num_hidden_layers", 1, 100000);
  model.hidden = config.integer("hidden_size", 1, kLargest);
  model.vocabulary = config.integer("vocab_size", 1, kLargest);
  model.experts = expert_count(config, family);
  model.experts_per_token = config.integer("num_experts_per_tok", 1, 1 << 20);
  if (model.experts_per_token > model.experts) {
    throw InvalidInput(fmt::format("{}: num_experts_per_tok is {} but there are {} experts", config.where(),
                                   model.experts_per_token, model.experts));
  }
  model.expert_width = config.integer(family.expert_width_key, 1, kLargest);
  if (!family.shared_width_key.empty()) model.shared_width = config.integer(family.shared_width_key, 1, kLargest);
  if (!family.dense_width_key.empty()) model.dense_width = config.integer(family.dense_width_key, 1, kLargest);
  model.normalise_gates = family.normalise_key.empty() || config.boolean_or(family.normalise_key, false);
  model.tied_embeddings = config.boolean_or("tie_word_embeddings", false);
  model.norm_epsilon = config.number_or("rms_norm_eps", 1e-6);
  if (const auto activation = config.text_or("hidden_act", "silu"); activation != "silu" && activation != "swish") {
    throw InvalidInput(fmt::format("{}: hidden_act \"{}\" is not supported; expected \"silu\"", config.where(), activation));
  }
}

/// decoder_sparse_step and mlp_only_layers (Qwen), else every layer is MoE.
bool is_sparse(const Model& model, const ConfigReader& config, std::int64_t layer) {
  if (!model.family->sparse_step_and_list) return true;
  const auto& list = config.raw("mlp_only_layers");
  if (!list.is_null() && !list.is_array()) {
    throw InvalidInput(fmt::format("{}: \"mlp_only_layers\" must be a list of layer numbers", config.where()));
  }
  for (const auto& entry : list) {
    if (!entry.is_number_integer()) {
      throw InvalidInput(fmt::format("{}: \"mlp_only_layers\" must be a list of layer numbers", config.where()));
    }
    if (entry.get<std::int64_t>() == layer) return false;
  }
  const std::int64_t step = config.has("decoder_sparse_step") ? config.integer("decoder_sparse_step", 1, 100000) : 1;
  return (layer + 1) % step == 0;
}

/// layer_types as given, else every other layer below max_window_layers (Qwen2-MoE).
bool layer_type_has_window(const Model& model, const ConfigReader& config, std::int64_t layer) {
  const auto& types = config.raw("layer_types");
  if (types.is_null()) return layer % 2 == 0 && layer < config.integer_or("max_window_layers", 28);
  if (!types.is_array() || static_cast<std::int64_t>(types.size()) != model.layers ||
      !types[static_cast<std::size_t>(layer)].is_string()) {
    throw InvalidInput(fmt::format("{}: \"layer_types\" must be a list of {} strings", config.where(), model.layers));
  }
  return types[static_cast<std::size_t>(layer)] == "sliding_attention";
}

std::int64_t window_of(const Model& model, const ConfigReader& config, std::int64_t layer) {
  const WindowRule rule = model.family->window;
  if (rule == WindowRule::none || !config.has("sliding_window")) return 0;
  if (rule != WindowRule::all_layers && !config.boolean_or("use_sliding_window", false)) return 0;
  if (rule == WindowRule::layer_types_when_enabled && !layer_type_has_window(model, config, layer)) return 0;
  return config.integer("sliding_window", 1);
}

}  // namespace

std::vector<int> Model::moe_layers() const {
  std::vector<int> out;
  for (std::size_t i = 0; i < layer.size(); ++i) {
    if (layer[i].sparse) out.push_back(static_cast<int>(i));
  }
  return out;
}

std::int64_t Model::length(Axis axis) const {
  switch (axis) {
    case Axis::E: return experts;
    case Axis::F: return expert_width;
    case Axis::F2: return 2 * expert_width;
    case Axis::H: return hidden;
    case Axis::V: return vocabulary;
    case Axis::Q: return heads * head_dim;
    case Axis::KV: return key_value_heads * head_dim;
    case Axis::D: return head_dim;
    case Axis::S: return shared_width;
    case Axis::M: return dense_width;
    case Axis::one: return 1;
  }
  throw Error("unknown axis");
}

Model describe(const Checkpoint& checkpoint) {
  const ConfigReader config(checkpoint.config(), (checkpoint.folder() / "config.json").string());
  Model model;
  model.family = &find_family(config);
  model.checkpoint = &checkpoint;
  read_sizes(model, config);
  read_attention(model, config);
  model.layer.resize(static_cast<std::size_t>(model.layers));
  for (std::int64_t i = 0; i < model.layers; ++i) {
    auto& layer = model.layer[static_cast<std::size_t>(i)];
    layer.sparse = is_sparse(model, config, i);
    layer.window = window_of(model, config, i);
  }
  place_tensors(model);
  return model;
}

}  // namespace moetrim
