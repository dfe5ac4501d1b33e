// MiniMax-M2: sigmoid router with a selection bias that lies beside the gate, half of each head rotated.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

namespace {

std::vector<TensorRule> bias_rules() {
  return {
      {Role::selection_bias, "model.layers.{layer}.block_sparse_moe.e_score_correction_bias", {Axis::E}},
      {Role::selection_bias, "model.layers.{layer}.mlp.e_score_correction_bias", {Axis::E}},
  };
}

}  // namespace

const Family minimax_m2{
    .name = "minimax_m2",
    .covers = "MiniMax-M2, MiniMax-M2.1",
    .source = "MiniMax-M2 config.json and weight index; transformers 5 MiniMaxM2ForCausalLM",
    .architectures = {"MiniMaxM2ForCausalLM"},
    .expert_count_keys = {"num_local_experts", "num_experts"},
    .expert_width_key = "intermediate_size",
    .router = {.score = RouterScore::sigmoid},
    .attention = {.query_key_norm = QueryKeyNorm::full, .rope_theta = 5000000.0},
    .tensors = join({decoder_rules(), query_key_norm_rules({Axis::Q}, {Axis::KV}), block_sparse_moe_rules(),
                     router_rules(), fused_rules(), bias_rules()}),
};

}  // namespace moetrim::family_list
