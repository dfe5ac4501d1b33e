// Granite 3 MoE: fused experts as input_linear and output_linear, and multipliers on embedding, attention, residual and logits.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> own_rules() {
  using enum Axis;
  const std::string base = "model.layers.{layer}.block_sparse_moe.";
  return {
      {Role::router, base + "router.layer.weight", {E, H}},
      {Role::fused_gate_up, base + "input_linear.weight", {E, F2, H}},
      {Role::fused_down, base + "output_linear.weight", {E, H, F}},
      // The names that transformers 5 has in memory.
      {Role::router, base + "router.weight", {E, H}},
      {Role::fused_gate_up, base + "experts.gate_up_proj", {E, F2, H}},
      {Role::fused_down, base + "experts.down_proj", {E, H, F}},
  };
}

}  // namespace

const Family granitemoe{
    .name = "granitemoe",
    .covers = "Granite-3.0/3.1 1B-A400M and 3B-A800M",
    .source = "granite-3.1-3b-a800m-instruct config.json and weight index; transformers 5 GraniteMoeForCausalLM",
    .architectures = {"GraniteMoeForCausalLM"},
    .expert_count_keys = {"num_local_experts", "num_experts"},
    .expert_width_key = "intermediate_size",
    .router = {.gates_in_activation_dtype = true},
    .tensors = join({decoder_rules(), own_rules()}),
};

}  // namespace moetrim::family_list
