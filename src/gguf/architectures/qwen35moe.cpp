// Qwen3.5-MoE, the language model. llama.cpp repeats key heads as a whole to match the value heads, so these are put in the order
// in which they meet their key heads then.

#include <numeric>

#include <fmt/ranges.h>

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/delta_net.h"

namespace moetrim::gguf_list {

namespace {

Rules delta_net() {
  return {
      {Role::delta_qkv, "blk.{}.attn_qkv.weight", GgufOperation::tiled_qkv},
      {Role::delta_z, "blk.{}.attn_gate.weight", GgufOperation::tiled_rows},
      {Role::delta_b, "blk.{}.ssm_beta.weight", GgufOperation::tiled_rows},
      {Role::delta_a, "blk.{}.ssm_alpha.weight", GgufOperation::tiled_rows},
      {Role::delta_conv, "blk.{}.ssm_conv1d.weight", GgufOperation::tiled_qkv},
      {Role::delta_time_bias, "blk.{}.ssm_dt.bias", GgufOperation::tiled_rows},
      {Role::delta_decay, "blk.{}.ssm_a", GgufOperation::tiled_decay},
      {Role::delta_output, "blk.{}.ssm_out.weight", GgufOperation::tiled_columns},
  };
}

/// Rotated pairs by the position that they follow: of time, height and width, and the last number 0. In text all are the same.
void add_sections(const GgufSource& source, GgufKeys& keys) {
  std::vector<std::int32_t> sections{11, 11, 10};
  const auto* rope = source.find(std::array<std::string_view, 2>{"rope_parameters", "rope_scaling"});
  if (rope != nullptr && rope->contains("mrope_section")) {
    const auto& list = rope->at("mrope_section");
    if (!list.is_array() || list.size() != 3 || !std::ranges::all_of(list, [](const auto& n) { return n.is_number_unsigned(); })) {
      source.refuse("mrope_section: expected a list of 3 whole numbers");
    }
    sections = list.get<std::vector<std::int32_t>>();
  }
  if (std::accumulate(sections.begin(), sections.end(), std::int64_t{0}) != source.model->rope.dimensions / 2) {
    source.refuse(fmt::format("mrope_section {} does not add up to the {} pairs of values that are rotated",
                              fmt::join(sections, ", "), source.model->rope.dimensions / 2));
  }
  sections.push_back(0);
  keys.wholes("rope.dimension_sections", sections);
}

void more(const GgufSource& source, GgufKeys& keys) {
  add_delta_net(source, keys);
  add_sections(source, keys);
}

}  // namespace

const GgufMapping qwen35moe{
    .architecture = "qwen35moe",
    .tensors = join({delta_net_skeleton(), delta_net()}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}},
             {"expert_shared_feed_forward_length", {"shared_expert_intermediate_size"}},
             {"full_attention_interval", {"full_attention_interval"}}},
    .normalises_gates = true,
    .partial_rotary = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
