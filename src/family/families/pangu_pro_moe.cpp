// Pangu Pro MoE: experts in as many groups as a token takes, one from each (MoGE), and a learned factor per expert.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family pangu_pro_moe{
    .name = "PanguProMoE",
    .covers = "Pangu-Pro-MoE-72B",
    .source = "arXiv 2505.21411 and the model definition in vllm-ascend; transformers has no class",
    .architectures = {"PanguProMoEForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "shared_expert_intermediate_size",
    .dense_width_key = "intermediate_size",
    .moe_layers = MoeLayers::sparse_step_and_list,
    .router = {.normalise = NormaliseGates::never, .groups = GroupRule::each},
    .tensors = join({decoder_rules(), dense_mlp_rules(), mlp_expert_rules(), shared_expert_rules("shared_expert"),
                     {{Role::router_scale, "model.layers.{layer}.mlp.router_scale", {Axis::one, Axis::E}}}}),
};

}  // namespace moetrim::family_list
