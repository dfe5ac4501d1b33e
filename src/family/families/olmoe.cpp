// OLMoE: queries and keys normalised over all heads at once, an optional clamp of q, k, v, gates that do not sum to one.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family olmoe{
    .name = "olmoe",
    .source = "OLMoE-1B-7B-0924 config.json and weight index; transformers 5 OlmoeForCausalLM",
    .architectures = {"OlmoeForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "intermediate_size",
    .shared_width_key = "",
    .dense_width_key = "",
    .sparse_step_and_list = false,
    .router_score = RouterScore::softmax,
    .normalise_key = "norm_topk_prob",
    .gates_in_activation_dtype = true,
    .query_key_norm = QueryKeyNorm::full,
    .clip_key = "clip_qkv",
    .window = WindowRule::none,
    .rope_theta = 10000.0,
    .tensors = join({decoder_rules(), query_key_norm_rules({Axis::Q}, {Axis::KV}), mlp_expert_rules()}),
};

}  // namespace moetrim::family_list
