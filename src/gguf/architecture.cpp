// Which family is which architecture of llama.cpp (its src/llama-arch.cpp, release v0.5.0).

#include "moetrim/gguf_architecture.h"

#include <algorithm>
#include <array>

namespace moetrim {

std::span<const GgufArchitecture> gguf_architectures() {
  static const std::array<GgufArchitecture, 17> list{{
      {"deepseek2", {"deepseek_v2", "deepseek_v3"}},
      {"dots1", {"dots1"}},
      {"ernie4_5-moe", {"ernie4_5_moe"}},
      {"glm4moe", {"glm4_moe"}},
      {"gpt-oss", {"gpt_oss"}},
      {"granitemoe", {"granitemoe"}},
      {"hunyuan-moe", {"hunyuan_v1_moe"}},
      {"llama", {"mixtral"}},
      {"llama4", {"llama4"}},
      {"minimax-m2", {"minimax_m2"}},
      {"olmoe", {"olmoe"}},
      {"phimoe", {"phimoe"}},
      {"qwen2moe", {"qwen2_moe"}},
      {"qwen3moe", {"qwen3_moe"}},
      {"qwen35moe", {"qwen3_5_moe"}},
      {"qwen3next", {"qwen3_next"}},
      {"qwen3vlmoe", {"qwen3_vl_moe"}},
  }};
  return list;
}

const GgufArchitecture* find_gguf_architecture(std::string_view name) {
  const auto list = gguf_architectures();
  const auto found = std::ranges::find(list, name, &GgufArchitecture::name);
  return found == list.end() ? nullptr : &*found;
}

const GgufArchitecture* gguf_architecture_of(std::string_view family) {
  for (const GgufArchitecture& architecture : gguf_architectures()) {
    if (std::ranges::find(architecture.families, family) != architecture.families.end()) return &architecture;
  }
  return nullptr;
}

}  // namespace moetrim
