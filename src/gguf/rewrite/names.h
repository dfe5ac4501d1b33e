// Names of tensors in a GGUF file: which block one belongs to, and whether it has an expert axis.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace moetrim::gguf_detail {

/// `blk.12.ffn_gate_exps.weight` is tensor `ffn_gate_exps.weight` of block 12.
struct BlockTensor {
  int block = -1;         ///< -1: of a number that is none
  std::string_view name;  ///< behind `blk.N.`
};
/// @return nothing for a tensor of no block
std::optional<BlockTensor> block_tensor(std::string_view name);

/// A tensor of a block that has an expert axis, which is its last one. Extents of 1 may follow: the converter writes the selection
/// bias of Ernie as [E, 1].
struct ExpertTensor {
  std::string_view name;
  int extents;  ///< [in, out, E] has 3
};
inline std::size_t expert_axis(const ExpertTensor& tensor) { return static_cast<std::size_t>(tensor.extents) - 1; }
/// @return null for a tensor without one
const ExpertTensor* find_expert_tensor(std::string_view name);

/// Whether a tensor of an MoE block is known to have no expert axis, whatever its extents are.
bool is_known_without_experts(std::string_view name);

/// `ffn_gate.7.weight`: experts as tensors of their own, which llama.cpp gave up in 2024.
bool is_single_expert(std::string_view name);

inline constexpr std::string_view kRouter = "ffn_gate_inp.weight";
inline constexpr std::string_view kDownExperts = "ffn_down_exps.weight";
inline constexpr std::string_view kUpExperts = "ffn_up_exps.weight";
inline constexpr std::string_view kGateUpExperts = "ffn_gate_up_exps.weight";

}  // namespace moetrim::gguf_detail
