// Qwen3-VL-MoE, its language model: Qwen3-MoE whose rotation has sections for time, height and width, equal for text.

#include <algorithm>
#include <array>

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

namespace {

constexpr std::size_t kSections = 4;  // the last one is unused

std::vector<std::int32_t> sections(const GgufSource& source) {
  const std::array<std::string_view, 2> places{"rope_parameters", "rope_scaling"};
  const nlohmann::ordered_json* rope = source.find(places);
  const auto found = rope == nullptr || !rope->is_object() ? nlohmann::ordered_json() : rope->value("mrope_section", nlohmann::ordered_json());
  const bool right = found.is_array() && !found.empty() && found.size() <= kSections &&
                     std::ranges::all_of(found, [](const auto& n) { return n.is_number_unsigned() && n.template get<std::uint64_t>() < 65536; });
  if (!right) source.refuse("rope_scaling: expected mrope_section, up to four whole numbers");
  std::vector<std::int32_t> out(kSections, 0);
  for (std::size_t i = 0; i < found.size(); ++i) out[i] = found[i].template get<std::int32_t>();
  return out;
}

void more(const GgufSource& source, GgufKeys& keys) {
  keys.wholes("rope.dimension_sections", sections(source));
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
