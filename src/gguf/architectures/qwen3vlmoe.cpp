// Qwen3-VL-MoE, its language model: Qwen3-MoE whose rotation has sections for time, height and width, equal for text.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/rope_tensors.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

namespace {

void more(const GgufSource& source, GgufKeys& keys) {
  add_rope_sections(source, keys);
  const auto vision = source.config.find("vision_config");
  const bool has = vision != source.config.end() && vision->is_object() && vision->contains("deepstack_visual_indexes");
  keys.whole("n_deepstack_layers", has ? static_cast<std::int64_t>((*vision)["deepstack_visual_indexes"].size()) : 0);
}

}  // namespace

const GgufMapping qwen3vlmoe{
    .architecture = "qwen3vlmoe",
    .tensors = join({skeleton(), attention(), query_key_norms(), experts()}),
    .keys = {{"expert_feed_forward_length", {"moe_intermediate_size"}}},
    .normalises_gates = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
