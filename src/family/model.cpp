// What a Model and its enumerations say of themselves.

#include <algorithm>

#include "moetrim/error.h"
#include "moetrim/family.h"

namespace moetrim {

Where where_of(Role role) {
  using enum Role;
  if (role <= head_bias) return Where::model;
  if (role <= mlp_norm_bias) return Where::every_layer;
  if (role <= key_value_up) return Where::attention;
  if (role <= delta_output) return Where::delta_net;
  if (role <= dense_down) return Where::dense;
  if (role <= shared_router) return Where::moe;
  if (role <= fused_down_bias) return Where::experts;
  return Where::mtp;
}

std::string_view group_rule_name(GroupRule rule) {
  switch (rule) {
    case GroupRule::none: return "none";
    case GroupRule::max: return "max";
    case GroupRule::top2: return "top2";
    case GroupRule::each: return "each";
  }
  throw Error("unknown group rule");
}

bool TensorRule::input_first() const {
  return axes.size() == 3 && axes[0] == Axis::E && (axes[2] == Axis::F2 || axes[1] == Axis::F);
}

bool Family::leaves_untouched(std::string_view tensor) const {
  return std::any_of(untouched.begin(), untouched.end(), [&](auto prefix) { return tensor.starts_with(prefix); });
}

bool Family::has(Role role) const {
  return std::any_of(tensors.begin(), tensors.end(), [&](const TensorRule& rule) { return rule.role == role; });
}

bool Weight::packed() const {
  const Dtype dtype = values()->dtype;
  const bool plain = dtype == Dtype::f64 || dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16;
  return !plain || std::any_of(parts.begin() + 1, parts.end(), [](const Tensor* part) { return part != nullptr; });
}

std::vector<int> Model::moe_layers(bool with_mtp) const {
  std::vector<int> out;
  for (std::size_t i = 0; i < layer.size(); ++i) {
    if (layer[i].sparse && (with_mtp || !layer[i].mtp)) out.push_back(static_cast<int>(i));
  }
  return out;
}

bool Model::selects_by_logit() const {
  if (group_rule != GroupRule::none || family->router.score == RouterScore::sparsemixer) return false;
  for (const LayerTensors& tensors : layer) {
    if (tensors[Role::selection_bias]) return false;
  }
  return true;
}

std::vector<std::int64_t> Model::shape(const TensorRule& rule, int layer) const {
  std::vector<std::int64_t> out;
  for (const Axis axis : rule.axes) out.push_back(axis == Axis::E ? experts_in(layer) : length(axis));
  return out;
}

std::int64_t Model::length(Axis axis) const {
  switch (axis) {
    case Axis::E: return experts;
    case Axis::F: return expert_width;
    case Axis::F2: return 2 * expert_width;
    case Axis::H: return hidden;
    case Axis::H2: return 2 * hidden;
    case Axis::V: return vocabulary;
    case Axis::Q: return heads * head_dim;
    case Axis::Q2: return 2 * heads * head_dim;
    case Axis::KV: return key_value_heads * head_dim;
    case Axis::D: return head_dim;
    case Axis::heads: return heads;
    case Axis::S: return shared_width;
    case Axis::M: return dense_width;
    case Axis::one: return 1;
    case Axis::query_rank: return latent.query_rank;
    case Axis::latent: return latent.rank;
    case Axis::latent_rope: return latent.rank + latent.rotated;
    case Axis::QN: return heads * head_dim;
    case Axis::KVN: return heads * (latent.plain + latent.value);
    case Axis::VH: return heads * latent.value;
    case Axis::delta_values: return delta.value_heads * delta.value_dim;
    case Axis::delta_conv: return 2 * delta.key_heads * delta.key_dim + delta.value_heads * delta.value_dim;
    case Axis::delta_qkvz: return 2 * delta.key_heads * delta.key_dim + 2 * delta.value_heads * delta.value_dim;
    case Axis::delta_heads: return delta.value_heads;
    case Axis::delta_heads2: return 2 * delta.value_heads;
    case Axis::delta_head_dim: return delta.value_dim;
    case Axis::delta_kernel: return delta.kernel;
  }
  throw Error("unknown axis");
}

}  // namespace moetrim
