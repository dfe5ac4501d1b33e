// Llama 4, the language model: the gate multiplies an expert's input, layers without rope see everything and the others a chunk.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> text_rules() {
  using enum Axis;
  const std::vector<TensorRule> fused{
      {Role::router, "model.layers.{layer}.mlp.router.weight", {E, H}},
      {Role::fused_gate_up, "model.layers.{layer}.mlp.experts.gate_up_proj", {E, H, F2}},
      {Role::fused_down, "model.layers.{layer}.mlp.experts.down_proj", {E, F, H}},
  };
  return join({decoder_rules(),
               respelled(join({dense_mlp_rules(), shared_expert_rules("shared_expert"), fused}), ".mlp.", ".feed_forward.")});
}

}  // namespace

const Family llama4{
    .name = "llama4",
    .aliases = {"llama4_text"},
    .covers = "Llama-4-Scout, Llama-4-Maverick (language model; vision tensors copied)",
    .source = "Llama-4-Scout-17B-16E config.json and weight index; transformers 5 Llama4ForCausalLM",
    .architectures = {"Llama4ForConditionalGeneration", "Llama4ForCausalLM"},
    .expert_count_keys = {"num_local_experts", "num_experts"},
    .expert_width_key = "intermediate_size",
    .shared_width_key = "intermediate_size",
    .dense_width_key = "intermediate_size_mlp",
    .moe_layers = MoeLayers::interleaved,
    .router = {.score = RouterScore::sigmoid, .normalise = NormaliseGates::never, .gates_in_activation_dtype = true,
               .gate_on_input = true},
    .attention = {.query_key_norm = QueryKeyNorm::unit_after_rope, .query_key_norm_key = "use_qk_norm",
                  .window = WindowRule::chunks, .pairs = RopePairs::neighbours, .rope_in_fp32 = true, .rope_by_layer = true,
                  .rope_theta = 500000.0},
    .untouched = {"vision_model.", "multi_modal_projector."},
    .tensors = join({text_rules(), respelled(text_rules(), "model.", "language_model.model."),
                     respelled(text_rules(), "lm_head.", "language_model.lm_head.")}),
};

}  // namespace moetrim::family_list
