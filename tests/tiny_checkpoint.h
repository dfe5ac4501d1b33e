// Small random checkpoints of every family, one tensor per expert or fused, for tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <stdlib.h>

#include "family/name_pattern.h"
#include "moetrim/checkpoint.h"
#include "moetrim/family.h"
#include "moetrim/plan.h"

namespace moetrim::testing {

/// A folder that goes away with this object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "moetrim-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct TinyModel {
  std::string family = "qwen3_moe";
  bool fused = false;
  int layers = 2, experts = 7, experts_per_token = 2, hidden = 8, width = 5, vocabulary = 11;
  Dtype dtype = Dtype::bf16;
  Dtype router_dtype = Dtype::f32;  ///< another one, so that files hold mixed types
  bool both_aliases = false;        ///< num_experts and num_local_experts
  bool dense_first = false;         ///< layer 0 is no MoE layer (Qwen only)
  bool normalised = true;           ///< norm_topk_prob
  int shards = 1;
  std::uint64_t seed = 1;
};

inline void write_text(const std::filesystem::path& file, const std::string& text) {
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << text;
}

inline std::string read_bytes(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

/// Every regular file below the folder, by relative name.
inline std::map<std::string, std::string> folder_contents(const std::filesystem::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) out[entry.path().lexically_relative(folder).string()] = read_bytes(entry.path());
  }
  return out;
}

namespace tiny {

inline const Family& family_named(const std::string& name) {
  for (const Family* family : families()) {
    if (family->name == name) return *family;
  }
  throw std::runtime_error("no family " + name);
}

inline bool is_moe_layer(const TinyModel& tiny, int layer) { return !(tiny.dense_first && layer == 0); }

inline std::int64_t length(const TinyModel& tiny, Axis axis) {
  switch (axis) {
    case Axis::E: return tiny.experts;
    case Axis::F: return tiny.width;
    case Axis::F2: return 2 * tiny.width;
    case Axis::H: return tiny.hidden;
    case Axis::H2: return 2 * tiny.hidden;
    case Axis::V: return tiny.vocabulary;
    case Axis::Q: return tiny.hidden;       // two heads
    case Axis::Q2: return 2 * tiny.hidden;
    case Axis::KV: return tiny.hidden / 2;  // one
    case Axis::D: return tiny.hidden / 2;
    case Axis::heads: return 2;
    case Axis::S: return family_named(tiny.family).shared_width_key == family_named(tiny.family).expert_width_key ? tiny.width : tiny.width + 2;
    case Axis::M: return tiny.width + 4;
    case Axis::latent: return 3;
    case Axis::latent_rope: return 5;       // two of them rotate
    case Axis::QN: return 2 * (3 + 2);
    case Axis::KVN: return 2 * (3 + 4);
    case Axis::VH: return 2 * 4;
    default: return 1;                      // gated delta nets and query ranks are left out
  }
}

/// True when a checkpoint of this layout has a tensor for the role in this layer; families without the layout have the other.
inline bool wanted(const TinyModel& tiny, const TensorRule& rule, int layer) {
  const auto& rules = family_named(tiny.family).tensors;
  const auto known = [&](Role role) { return std::any_of(rules.begin(), rules.end(), [&](const auto& r) { return r.role == role; }); };
  const bool fused = (tiny.fused && known(Role::fused_gate_up)) || !known(Role::expert_gate);
  const bool moe = is_moe_layer(tiny, layer);
  const bool direct_query = rule.role == Role::query && family_named(tiny.family).attention.latent;
  switch (where_of(rule.role)) {
    case Where::model: return false;
    case Where::every_layer: return !rule.optional;
    case Where::attention: return !rule.optional || direct_query;
    case Where::delta_net: return false;
    case Where::dense: return !moe;
    case Where::moe: return moe && !rule.optional;
    case Where::experts: return moe && fused == (rule.role >= Role::fused_gate_up);
    case Where::mtp: return false;
  }
  return false;
}

inline std::vector<TensorSpec> specs(const TinyModel& tiny) {
  std::vector<TensorSpec> out;
  std::set<std::pair<Role, int>> seen;  // of several spellings the first
  const auto add = [&](const TensorRule& rule, int layer, int expert) {
    TensorSpec spec{expand_name(rule.name, layer, expert), rule.role == Role::router ? tiny.router_dtype : tiny.dtype, {}};
    for (const Axis axis : rule.axes) spec.shape.push_back(length(tiny, axis));
    out.push_back(std::move(spec));
  };
  for (const TensorRule& rule : family_named(tiny.family).tensors) {
    if (where_of(rule.role) == Where::model) {
      if ((!rule.optional || rule.role == Role::head) && seen.emplace(rule.role, -1).second) add(rule, -1, -1);
      continue;
    }
    for (int layer = 0; layer < tiny.layers; ++layer) {
      if (!wanted(tiny, rule, layer) || !seen.emplace(rule.role, layer).second) continue;
      const bool each = rule.name.find("{expert}") != std::string::npos;
      for (int expert = 0; expert < (each ? tiny.experts : 1); ++expert) add(rule, layer, each ? expert : -1);
    }
  }
  return out;
}

/// Small finite numbers in f32 or bf16; arbitrary bytes without exponents of ones in other types.
inline std::vector<std::byte> random_bytes(const TensorSpec& spec, std::mt19937_64& random) {
  std::vector<std::byte> out(spec.bytes());
  const std::size_t width = spec.dtype == Dtype::f32 ? 4 : spec.dtype == Dtype::bf16 ? 2 : 1;
  for (std::size_t i = 0; i + width <= out.size(); i += width) {
    if (width == 1) {
      out[i] = static_cast<std::byte>(random() & 0x3B);
      continue;
    }
    const float value = static_cast<float>(static_cast<double>(random() >> 11) * 0x1p-53 - 0.5);
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (width == 2) bits >>= 16;
    std::memcpy(out.data() + i, &bits, width);
  }
  return out;
}

inline nlohmann::ordered_json config(const TinyModel& tiny) {
  const Family& family = family_named(tiny.family);
  nlohmann::ordered_json json;
  json["architectures"] = {family.architectures.front()};
  json["model_type"] = tiny.family;
  json["_note"] = "caf\u00e9";
  json["num_hidden_layers"] = tiny.layers;
  json["hidden_size"] = tiny.hidden;
  json["vocab_size"] = tiny.vocabulary;
  json["num_attention_heads"] = 2;
  json["num_key_value_heads"] = 1;
  json["head_dim"] = tiny.hidden / 2;
  json[std::string(family.expert_count_keys[0])] = tiny.experts;
  // One group, where there are as many as experts per token.
  const bool groups = family.router.groups == GroupRule::each;
  json[std::string(family.experts_per_token_keys[0])] = groups ? 1 : tiny.experts_per_token;
  if (tiny.both_aliases) json[std::string(family.expert_count_keys[1])] = tiny.experts;
  if (!family.dense_width_key.empty()) json[std::string(family.dense_width_key)] = tiny.width + 4;
  if (!family.shared_width_key.empty()) json[std::string(family.shared_width_key)] = tiny.width + 2;
  json[std::string(family.expert_width_key)] = tiny.width;
  if (family.router.normalise == NormaliseGates::by_config) json["norm_topk_prob"] = tiny.normalised;
  if (family.moe_layers == MoeLayers::sparse_step_and_list) json["mlp_only_layers"] = tiny.dense_first ? std::vector<int>{0} : std::vector<int>{};
  if (family.moe_layers == MoeLayers::after_dense) json["first_k_dense_replace"] = tiny.dense_first ? 1 : 0;
  if (family.moe_layers == MoeLayers::interval) json["moe_layer_start_index"] = tiny.dense_first ? 1 : 0;
  if (!family.shared_count_key.empty()) json[std::string(family.shared_count_key)] = 1;
  if (family.attention.latent) {
    json["kv_lora_rank"] = 3;
    json["qk_nope_head_dim"] = 3;
    json["qk_rope_head_dim"] = 2;
    json["v_head_dim"] = 4;
  }
  if (family.attention.delta_net) {
    for (const char* key : {"num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim"}) {
      json[std::string("linear_") + key] = 1;
    }
    json["layer_types"] = std::vector<std::string>(static_cast<std::size_t>(tiny.layers), "full_attention");
  }
  json["rms_norm_eps"] = 1e-6;
  json["max_position_embeddings"] = 64;
  json["rope_theta"] = 10000.0;
  json["partial_rotary_factor"] = 1.0;
  json["tie_word_embeddings"] = false;
  return json;
}

}  // namespace tiny

/// Writes the folder: weights (with an index when sharded), config.json, tokenizer and licence files.
inline void write_tiny_checkpoint(const std::filesystem::path& folder, const TinyModel& tiny) {
  std::filesystem::create_directories(folder);
  const auto specs = tiny::specs(tiny);
  std::mt19937_64 random(tiny.seed);
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = 0;
  std::uint64_t total = 0;
  const auto per_shard = (specs.size() + static_cast<std::size_t>(tiny.shards) - 1) / static_cast<std::size_t>(tiny.shards);
  for (int shard = 0; shard < tiny.shards; ++shard) {
    const auto begin = std::min(specs.size(), per_shard * static_cast<std::size_t>(shard));
    const auto end = std::min(specs.size(), begin + per_shard);
    const std::vector<TensorSpec> part(specs.begin() + static_cast<std::ptrdiff_t>(begin),
                                       specs.begin() + static_cast<std::ptrdiff_t>(end));
    const std::string number = std::to_string(shard + 1) + "-of-" + std::to_string(tiny.shards);
    const std::string name = tiny.shards == 1 ? "model.safetensors" : "model-" + number + ".safetensors";
    SafetensorsWriter writer(folder / name, part);
    for (const auto& spec : part) {
      writer.write(tiny::random_bytes(spec, random));
      index["weight_map"][spec.name] = name;
      total += spec.bytes();
    }
    writer.finish();
  }
  index["metadata"]["total_size"] = total;
  if (tiny.shards > 1) write_text(folder / "model.safetensors.index.json", index.dump(2));
  write_text(folder / "config.json", tiny::config(tiny).dump(2));
  write_text(folder / "tokenizer.json", R"({"model": {"type": "BPE", "vocab": {}, "merges": []}})");
  write_text(folder / "tokenizer_config.json", "{}");
  write_text(folder / "generation_config.json", R"({"eos_token_id": 1})");
  write_text(folder / "LICENSE", "terms\n");
}

/// A plan for the model with these kept experts in every MoE layer; layer i keeps keeps[i mod size].
inline Plan plan_keeping(const Model& model, const std::vector<std::vector<int>>& keeps) {
  Plan plan;
  plan.method = "by-hand";
  plan.variant = "executed";
  plan.checkpoint_fingerprint = model.checkpoint->fingerprint();
  plan.family = model.family->name;
  plan.experts = static_cast<int>(model.experts);
  plan.keep = static_cast<int>(keeps.front().size());
  plan.experts_per_token = static_cast<int>(model.experts_per_token);
  for (const int layer : model.moe_layers()) {
    PlanLayer entry;
    entry.layer = layer;
    entry.keep = keeps[plan.layers.size() % keeps.size()];
    plan.layers.push_back(std::move(entry));
  }
  return plan;
}

}  // namespace moetrim::testing
