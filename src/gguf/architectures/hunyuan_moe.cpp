// Hunyuan-A13B.

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

namespace {

/// Hunyuan's fixed scaling of theta is already in it. The length that alpha 1000 is made for stands nowhere in the config.
void add_rope(const GgufSource& source, GgufKeys& keys) {
  constexpr std::int64_t kLength = 262144;
  const auto* rope = source.find(std::array<std::string_view, 2>{"rope_parameters", "rope_scaling"});
  if (rope == nullptr || !rope->contains("alpha")) return;
  keys.text("rope.scaling.type", "none");
  keys.real("rope.scaling.factor", 1);
  const std::int64_t length = rope->at("alpha") == 1000 ? kLength : source.model->rope.max_positions;
  keys.whole("rope.scaling.original_context_length", length);
  keys.whole("context_length", length);
}

void more(const GgufSource& source, GgufKeys& keys) {
  keys.whole("expert_feed_forward_length", source.model->expert_width);
  keys.whole("expert_shared_feed_forward_length", source.model->shared_width);
  keys.whole("expert_shared_count", 1);
  add_rope(source, keys);
}

}  // namespace

const GgufMapping hunyuan_moe{
    .architecture = "hunyuan-moe",
    .tensors = join({skeleton(), attention(), query_key_norms(), experts(), shared_experts()}),
    .normalises_gates = true,
    .more = more,
};

}  // namespace moetrim::gguf_list
