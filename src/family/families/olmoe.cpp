// OLMoE: queries and keys normalised over all heads at once, an optional clamp of q, k, v, gates that do not sum to one.

#include "family/families.h"
#include "family/tensor_rules.h"

namespace moetrim::family_list {

const Family olmoe{
    .name = "olmoe",
    .covers = "OLMoE-1B-7B",
    .source = "OLMoE-1B-7B-0924 config.json and weight index; transformers 5 OlmoeForCausalLM",
    .architectures = {"OlmoeForCausalLM"},
    .expert_count_keys = {"num_experts", "num_local_experts"},
    .expert_width_key = "intermediate_size",
    .router = {.normalise = NormaliseGates::by_config, .gates_in_activation_dtype = true},
    .attention = {.query_key_norm = QueryKeyNorm::full, .clip_key = "clip_qkv"},
    .tensors = join({decoder_rules(), query_key_norm_rules({Axis::Q}, {Axis::KV}), mlp_expert_rules()}),
};

}  // namespace moetrim::family_list
