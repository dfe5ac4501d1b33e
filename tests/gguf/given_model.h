// Small GGUF models for tests: random bytes under the names of an MoE model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "moetrim/gguf_file.h"
#include "moetrim/plan.h"

namespace moetrim::given {

struct GgufMoeModel {
  std::string architecture = "qwen3moe", family = "qwen3_moe";
  std::uint32_t blocks = 3, experts = 6, experts_per_token = 2, mtp = 0;
  std::uint32_t groups = 0;
  GgmlType type = GgmlType::f32;  ///< of the experts' matrices
  std::uint64_t hidden = 64, width = 32;
  bool biases = false;            ///< router and experts have them, and a selection bias, and NVFP4's scales
  std::function<void(GgufMetadata&)> keys = [](GgufMetadata&) {};
  std::vector<GgufTensorSpec> more = {};

  GgufMetadata metadata() const {
    GgufMetadata out;
    out.set("general.architecture", architecture);
    out.set("general.name", std::string("Given 10M"));
    out.set("general.size_label", fmt::format("{}x1M", experts));
    const auto key = [&](std::string_view name, std::uint32_t value) { out.set(fmt::format("{}.{}", architecture, name), value); };
    key("block_count", blocks);
    key("embedding_length", static_cast<std::uint32_t>(hidden));
    key("expert_count", experts);
    key("expert_used_count", experts_per_token);
    if (groups > 0) key("expert_group_count", groups), key("expert_group_used_count", 1);
    if (mtp > 0) key("nextn_predict_layers", mtp);
    keys(out);
    return out;
  }

  /// Block 0 is dense.
  std::vector<GgufTensorSpec> tensors() const {
    const std::uint64_t e = experts;
    std::vector<GgufTensorSpec> out{{"token_embd.weight", GgmlType::f16, {hidden, 11}}, {"output_norm.weight", GgmlType::f32, {hidden}}};
    for (std::uint32_t block = 0; block < blocks; ++block) {
      const auto add = [&](std::string_view name, GgmlType of, std::vector<std::uint64_t> shape) {
        out.push_back({fmt::format("blk.{}.{}", block, name), of, std::move(shape)});
      };
      add("attn_q.weight", GgmlType::bf16, {hidden, e});  // as many rows as experts, and yet none of theirs
      if (block == 0) {
        add("ffn_down.weight", GgmlType::f32, {width, hidden});
        continue;
      }
      add("ffn_gate_inp.weight", GgmlType::f32, {hidden, e});
      add("ffn_gate_exps.weight", type, {hidden, width, e});
      add("ffn_down_exps.weight", type, {width, hidden, e});
      add("ffn_up_exps.weight", type, {hidden, width, e});
      if (!biases) continue;
      add("ffn_gate_inp.bias", GgmlType::f32, {e});
      add("exp_probs_b.bias", GgmlType::f32, {e});
      add("ffn_down_exps.bias", GgmlType::f32, {hidden, e});
      add("ffn_up_exps.scale", GgmlType::f32, {e});
      add("ffn_up_exps.input_scale", GgmlType::f32, {e});
    }
    out.insert(out.end(), more.begin(), more.end());
    return out;
  }

  /// Keeps these experts in every layer.
  Plan plan(std::vector<int> keep) const {
    Plan out;
    out.family = family;
    out.experts = static_cast<int>(experts);
    out.experts_per_token = static_cast<int>(experts_per_token);
    out.keep = static_cast<int>(keep.size());
    out.checkpoint_fingerprint = "original";
    if (groups > 0) out.groups = {.count = static_cast<int>(groups), .chosen = 1, .rule = "top2"};
    for (std::uint32_t block = 1; block < blocks; ++block) out.layers.push_back({.layer = static_cast<int>(block), .keep = keep});
    return out;
  }
};

/// Tensors of random bytes.
inline void write_gguf_file(const std::filesystem::path& file, const GgufMetadata& metadata, const std::vector<GgufTensorSpec>& tensors) {
  std::mt19937 random(7);
  GgufWriter writer(file, metadata, tensors);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::vector<std::byte> bytes(tensors[i].bytes());
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() & 0x3F);  // no float of them is NaN or infinite
    writer.write_at(i, 0, bytes);
  }
  writer.finish();
}

/// The model in one file, or dealt out over several.
/// @return the first file
inline std::filesystem::path write_gguf_model(const std::filesystem::path& folder, const GgufMoeModel& model, std::uint16_t files = 1) {
  const auto tensors = model.tensors();
  if (files == 1) {
    write_gguf_file(folder / "in.gguf", model.metadata(), tensors);
    return folder / "in.gguf";
  }
  for (std::uint16_t i = 0; i < files; ++i) {
    GgufMetadata metadata = i == 0 ? model.metadata() : GgufMetadata();
    metadata.set("split.no", i);
    metadata.set("split.count", files);
    metadata.set("split.tensors.count", static_cast<std::int32_t>(tensors.size()));
    const auto part = [&](std::uint16_t n) { return tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() * n / files); };
    write_gguf_file(gguf_split_path(folder / "in", i, files), metadata, {part(i), part(i + 1)});
  }
  return gguf_split_path(folder / "in", 0, files);
}

}  // namespace moetrim::given
