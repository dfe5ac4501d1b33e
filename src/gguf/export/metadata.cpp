// The keys of a file. Source: llama.cpp release v0.5.0, conversion/base.py and gguf-py.

#include "gguf/export/metadata.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include <fmt/format.h>

#include "export/base_model.h"
#include "moetrim/error.h"
#include "moetrim/gguf_rewrite.h"

namespace moetrim::gguf_detail {

namespace {

/// llama.cpp's number for what most matrices of a file are stored as.
std::uint32_t file_type(GgmlType type, const std::vector<GgufPlannedTensor>& tensors) {
  const auto is_mxfp4 = [](const GgufPlannedTensor& tensor) { return tensor.spec.type == GgmlType::mxfp4; };
  if (type != GgmlType::q8_0 && std::ranges::any_of(tensors, is_mxfp4)) return 38;
  switch (type) {
    case GgmlType::f32: return 0;
    case GgmlType::f16: return 1;
    case GgmlType::q8_0: return 7;
    case GgmlType::bf16: return 32;
    default: throw Error("no file type for " + std::string(ggml_layout(type).name));
  }
}

/// By the rule that pruning a file follows too.
std::string size_label(const GgufSource& source, const std::vector<GgufPlannedTensor>& tensors) {
  std::vector<GgufOutputFile> files(1);
  for (const GgufPlannedTensor& tensor : tensors) files[0].tensors.push_back({tensor.spec, {}});
  return gguf_size_label({}, files, static_cast<int>(source.experts), static_cast<int>(source.experts_per_token), false);
}

void add_licence(const GgufSource& source, GgufMetadata& metadata) {
  std::istringstream lines(export_detail::licence_lines(*source.model->checkpoint));
  for (std::string line; std::getline(lines, line);) {
    const auto colon = line.find(": ");
    const std::string key = line.substr(0, colon);
    const std::string name = key == "license" ? "general.license" : "general.license." + key.substr(key.find('_') + 1);
    metadata.set(name, line.substr(colon + 2));
  }
}

void add_base_model(const std::string& name, GgufMetadata& metadata) {
  metadata.set("general.base_model.count", std::uint32_t{1});
  const auto slash = name.find('/');
  metadata.set("general.base_model.0.name", name.substr(slash == std::string::npos ? 0 : slash + 1));
  if (slash == std::string::npos) return;
  metadata.set("general.base_model.0.organization", name.substr(0, slash));
  metadata.set("general.base_model.0.repo_url", "https://huggingface.co/" + name);
}

/// YaRN: llama.cpp derives the factor of cosine and sine from the scaling; anything else is multiplied onto it.
void add_yarn(const GgufSource& source, const Rope& rope, GgufKeys& keys) {
  keys.text("rope.scaling.type", "yarn");
  keys.real("rope.scaling.factor", rope.factor);
  keys.whole("rope.scaling.original_context_length", rope.original_max_positions);
  keys.real("rope.scaling.yarn_beta_fast", rope.beta_fast);
  keys.real("rope.scaling.yarn_beta_slow", rope.beta_slow);
  if (rope.beta_fast != 32.0 || rope.beta_slow != 1.0) {
    keys.notes.push_back(fmt::format("Run llama.cpp with --yarn-beta-fast {} --yarn-beta-slow {}: the file says so too, but "
                                     "llama.cpp takes 32 and 1 unless it is told.", rope.beta_fast, rope.beta_slow));
  }
  // For latent attention it derives none where there is a yarn_log_multiplier.
  const double derived = rope.factor <= 1 || source.model->latent.rank > 0 ? 1 : 0.1 * std::log(rope.factor) + 1;
  const double factor = rope.attention_factor / derived;
  if (std::abs(factor - 1) > 1e-6) keys.real("rope.scaling.attn_factor", factor);
}

void add_rope(const GgufSource& source, const GgufMapping& mapping, GgufKeys& keys) {
  const Rope& rope = source.model->rope;
  if (std::ranges::find(mapping.ropes, rope.kind) == mapping.ropes.end()) {
    source.refuse(fmt::format("its kind of rope scaling is none that llama.cpp's {} computes", mapping.architecture));
  }
  keys.real("rope.freq_base", rope.theta);
  if (rope.kind == RopeKind::linear) {
    keys.text("rope.scaling.type", "linear");
    keys.real("rope.scaling.factor", rope.factor);
  }
  if (rope.kind == RopeKind::yarn) add_yarn(source, rope, keys);
  if (mapping.partial_rotary) {
    keys.whole("rope.dimension_count", rope.dimensions);
  } else if (rope.dimensions != source.model->head_dim) {
    source.refuse(fmt::format("{} of {} values of a head are rotated; llama.cpp's {} rotates all", rope.dimensions,
                              source.model->head_dim, mapping.architecture));
  }
}

void check_layers(const GgufSource& source, const GgufMapping& mapping) {
  const Model& model = *source.model;
  for (int layer = 0; layer < source.blocks(); ++layer) {
    const LayerTensors& tensors = model.layer[static_cast<std::size_t>(layer)];
    if (!tensors.sparse && !mapping.dense_layers) {
      source.refuse(fmt::format("layer {} has no experts; llama.cpp's {} has some in every layer", layer,
                                mapping.architecture));
    }
    if (tensors.window > 0 && !mapping.windows && tensors.window < model.rope.max_positions) {
      source.refuse(fmt::format("layer {} looks back {} tokens of {}; llama.cpp's {} always looks back over all of them. Set "
                                "sliding_window to null to export it so, for contexts up to that length",
                                layer, tensors.window, model.rope.max_positions, mapping.architecture));
    }
  }
}

void check_gates(const GgufSource& source, const GgufMapping& mapping, GgufKeys& keys) {
  const bool normalises = source.model->normalise_gates;
  if (!mapping.normalises_gates) {
    keys.flag("expert_weights_norm", normalises);
  } else if (*mapping.normalises_gates != normalises) {
    source.refuse(fmt::format("gates are {}divided by their sum (norm_topk_prob); in llama.cpp's {} they {}",
                              normalises ? "" : "not ", mapping.architecture, normalises ? "never are" : "always are"));
  }
  if (mapping.scales_gates) {
    keys.real("expert_weights_scale", source.routed_scale);
  } else if (source.routed_scale != 1.0) {
    source.refuse(fmt::format("gates are multiplied by {} (routed_scaling_factor); llama.cpp's {} has no such factor",
                              source.routed_scale, mapping.architecture));
  }
}

void add_rule(const GgufSource& source, const GgufKeyRule& rule, GgufKeys& keys) {
  const nlohmann::ordered_json* value = source.find(rule.config);
  if (value == nullptr) return;
  const auto wrong = [&](std::string_view expected) {
    source.refuse(fmt::format("{}: expected {}, got {}", rule.config.front(), expected, value->dump().substr(0, 60)));
  };
  if (rule.type == GgufType::boolean) {
    if (!value->is_boolean()) wrong("true or false");
    keys.flag(rule.key, value->get<bool>());
  } else if (rule.type == GgufType::f32) {
    if (!value->is_number() || !std::isfinite(value->get<double>())) wrong("a number");
    keys.real(rule.key, value->get<double>());
  } else {
    if (!value->is_number_unsigned() || value->get<std::uint64_t>() > 0xFFFFFFFFU) wrong("a whole number");
    keys.whole(rule.key, value->get<std::int64_t>());
  }
}

}  // namespace

void add_general_keys(const GgufSource& source, const std::vector<GgufPlannedTensor>& tensors, GgmlType type,
                      GgufMetadata& metadata) {
  const std::string base = export_detail::base_model(*source.model->checkpoint);
  std::string name = base.substr(base.find('/') + 1);
  if (source.plan != nullptr) name += fmt::format("-{}-experts", source.experts);
  metadata.set("general.type", std::string("model"));
  metadata.set("general.name", name);
  metadata.set("general.size_label", size_label(source, tensors));
  add_licence(source, metadata);
  if (source.plan != nullptr) add_base_model(base, metadata);
  metadata.set("general.file_type", file_type(type, tensors));
  metadata.set("general.quantization_version", std::uint32_t{2});
}

void add_model_keys(const GgufSource& source, const GgufMapping& mapping, GgufKeys& keys) {
  const Model& model = *source.model;
  check_layers(source, mapping);
  if (mapping.square_queries && model.heads * model.head_dim != model.hidden) {
    source.refuse(fmt::format("queries have {} heads of {}; llama.cpp's {} expects the hidden size, {}", model.heads,
                              model.head_dim, mapping.architecture, model.hidden));
  }
  keys.whole("vocab_size", model.vocabulary);
  keys.whole("block_count", source.blocks());
  keys.whole("context_length", model.rope.max_positions);
  keys.whole("embedding_length", model.hidden);
  add_rule(source, {"feed_forward_length", {"intermediate_size"}}, keys);
  keys.whole("attention.head_count", model.heads);
  keys.whole("attention.head_count_kv", model.key_value_heads);
  if (model.latent.rank == 0) {
    keys.whole("attention.key_length", model.head_dim);
    keys.whole("attention.value_length", model.head_dim);
  }
  keys.real("attention.layer_norm_rms_epsilon", model.norm_epsilon);
  add_rope(source, mapping, keys);
  keys.whole("expert_count", source.experts);
  keys.whole("expert_used_count", source.experts_per_token);
  check_gates(source, mapping, keys);
  for (const GgufKeyRule& rule : mapping.keys) add_rule(source, rule, keys);
  if (mapping.more != nullptr) mapping.more(source, keys);
}

}  // namespace moetrim::gguf_detail
