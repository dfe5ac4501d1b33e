// Names of tensors in a GGUF file, after llama.cpp's src/llama-arch.cpp and what src/llama-model.cpp creates of each.

#include "gguf/rewrite/names.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace moetrim::gguf_detail {

namespace {

constexpr std::string_view kBlock = "blk.";

constexpr std::array<ExpertTensor, 20> kExpertTensors{{
    {"ffn_gate_inp.weight", 2},
    {"ffn_gate_inp.bias", 1},
    {"exp_probs_b.bias", 1},
    {"exp_probs_b", 1},  // without a suffix, as the first files with a selection bias have it
    {"ffn_gate_exps.weight", 3},
    {"ffn_up_exps.weight", 3},
    {"ffn_down_exps.weight", 3},
    {"ffn_gate_up_exps.weight", 3},
    {"ffn_gate_exps.bias", 2},
    {"ffn_up_exps.bias", 2},
    {"ffn_down_exps.bias", 2},
    {"ffn_gate_up_exps.bias", 2},
    // Of NVFP4: one number per expert.
    {"ffn_gate_exps.scale", 1},
    {"ffn_up_exps.scale", 1},
    {"ffn_down_exps.scale", 1},
    {"ffn_gate_up_exps.scale", 1},
    {"ffn_gate_exps.input_scale", 1},
    {"ffn_up_exps.input_scale", 1},
    {"ffn_down_exps.input_scale", 1},
    {"ffn_gate_up_exps.input_scale", 1},
}};

/// Beginnings of the names of all other tensors that blocks of our architectures have.
constexpr std::array<std::string_view, 10> kWithoutExperts = {
    "attn_",           "ssm_",           "nextn.",         "ffn_norm.",           "post_attention_norm.",
    "ffn_gate_shexp.", "ffn_up_shexp.",  "ffn_down_shexp.", "ffn_gate_inp_shexp.", "layer_output_norm.",
};

}  // namespace

std::optional<BlockTensor> block_tensor(std::string_view name) {
  if (!name.starts_with(kBlock)) return std::nullopt;
  BlockTensor out;
  const char* begin = name.data() + kBlock.size();
  const char* end = name.data() + name.size();
  const auto [point, error] = std::from_chars(begin, end, out.block);
  if (error != std::errc{} || point == end || *point != '.' || out.block < 0) return BlockTensor{-1, name};
  out.name = {point + 1, end};
  return out;
}

const ExpertTensor* find_expert_tensor(std::string_view name) {
  const auto found = std::ranges::find(kExpertTensors, name, &ExpertTensor::name);
  return found == kExpertTensors.end() ? nullptr : &*found;
}

bool is_known_without_experts(std::string_view name) {
  return std::ranges::any_of(kWithoutExperts, [&](std::string_view start) { return name.starts_with(start); });
}

bool is_single_expert(std::string_view name) {
  for (const std::string_view start : {"ffn_gate.", "ffn_up.", "ffn_down."}) {
    if (name.starts_with(start) && name.size() > start.size() && name[start.size()] >= '0' && name[start.size()] <= '9') return true;
  }
  return false;
}

}  // namespace moetrim::gguf_detail
