// Qwen3-VL-MoE, the text tower: Qwen3-MoE with fused experts stored transposed; the vision tower is copied.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> text_rules() {
  return join({decoder_rules(), query_key_norm_rules({Axis::D}, {Axis::D}), dense_mlp_rules(), router_rules(),
               transposed_fused_rules(), fused_rules(), expert_rules()});
}

}  // namespace

const Family qwen3_vl_moe{
    .name = "qwen3_vl_moe",
    .aliases = {"qwen3_vl_moe_text"},
    .covers = "Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B (text tower; vision tensors copied)",
    .source = "Qwen3-VL-30B-A3B config.json and weight index; transformers 5 Qwen3VLMoeForConditionalGeneration",
    .architectures = {"Qwen3VLMoeForConditionalGeneration"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::sparse_step_and_list,
    .router = {.gates_in_activation_dtype = true},
    .attention = {.query_key_norm = QueryKeyNorm::per_head, .rope_theta = 5000000.0},
    .untouched = {"model.visual.", "visual."},
    .tensors = join({text_rules(), respelled(text_rules(), "model.", "model.language_model.")}),
};

}  // namespace moetrim::family_list
