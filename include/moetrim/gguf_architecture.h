// The architectures of llama.cpp that our families are: a GGUF file names its architecture under general.architecture, and puts
// it before the keys of its sizes ("qwen3moe.expert_count").
#pragma once

#include <span>
#include <string_view>
#include <vector>

namespace moetrim {

struct GgufArchitecture {
  std::string_view name;                    ///< general.architecture
  std::vector<std::string_view> families;   ///< Family::name
};

std::span<const GgufArchitecture> gguf_architectures();
/// @return null for an architecture that is none of our families
const GgufArchitecture* find_gguf_architecture(std::string_view name);
/// @return null for a family that llama.cpp does not have
const GgufArchitecture* gguf_architecture_of(std::string_view family);

}  // namespace moetrim
