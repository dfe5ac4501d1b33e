// gpt-oss: attention sinks, windows in every other layer, biases everywhere, clamped SwiGLU, experts fused with gate and up
// taking turns; published in MXFP4.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> own_rules() {
  using enum Axis;
  const std::string base = "model.layers.{layer}.";
  return {
      {Role::sinks, base + "self_attn.sinks", {heads}},
      {Role::router, base + "mlp.router.weight", {E, H}},
      {Role::router_bias, base + "mlp.router.bias", {E}},
      {Role::fused_gate_up, base + "mlp.experts.gate_up_proj", {E, H, F2}},
      {Role::fused_gate_up_bias, base + "mlp.experts.gate_up_proj_bias", {E, F2}},
      {Role::fused_down, base + "mlp.experts.down_proj", {E, F, H}},
      {Role::fused_down_bias, base + "mlp.experts.down_proj_bias", {E, H}},
  };
}

}  // namespace

const Family gpt_oss{
    .name = "gpt_oss",
    .covers = "gpt-oss-20b, gpt-oss-120b",
    .source = "gpt-oss-20b config.json and weight index; transformers 5 GptOssForCausalLM",
    .architectures = {"GptOssForCausalLM"},
    .expert_count_keys = {"num_local_experts", "num_experts"},
    .experts_per_token_keys = {"num_experts_per_tok", "experts_per_token"},
    .expert_width_key = "intermediate_size",
    .router = {.gates_in_activation_dtype = true},
    .attention = {.window = WindowRule::alternating_layer_types, .rope_theta = 150000.0},
    .norm = NormKind::rms_fp32,
    .activation = Activation::clamped_swiglu,
    .fused_interleaved = true,
    .tensors = join({decoder_rules(), own_rules()}),
};

}  // namespace moetrim::family_list
