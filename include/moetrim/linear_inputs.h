// What the linear layers of a model read, as sums of squares: the measure that quantisers weigh a matrix's columns by.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace moetrim {

/// An input that one or more linear layers of a decoder layer share.
enum class LinearInput : std::uint8_t {
  attention,         ///< [H] normalised: queries, keys, values and their latent forms; the delta net's projections
  query_latent,      ///< [query_rank] normalised, of latent attention: query_up
  key_value_latent,  ///< [latent] normalised: key_value_up as one matrix
  query_heads,       ///< [heads, qk_nope_head_dim] queries without their rotated part: key_value_up's key rows, where a
                     ///< runtime multiplies queries instead of keys with them
  attended_latent,   ///< [heads, latent] latents as every head attends to them: its value rows, likewise
  attention_output,  ///< [Q], [VH] or [delta_values]: the output projection
  mlp,               ///< [H] normalised: router, gate and up of dense MLPs and of shared experts, the shared router
  mlp_down,          ///< [M] or [S]: down of a dense MLP or of shared experts
  expert,            ///< [E, H] over routed tokens: gate and up; with the router's score in it in Llama-4
  expert_down,       ///< [E, F] over routed tokens: down
  joined,            ///< [2 H]: the projection in front of a multi-token-prediction block
  head,              ///< [H] behind the final norm, of the last layer: the output head
};
inline constexpr std::size_t kLinearInputs = 12;

/// Spelling in files, for example "query_latent".
constexpr std::string_view linear_input_name(LinearInput input) {
  constexpr std::array<std::string_view, kLinearInputs> kNames{
      "attention", "query_latent", "key_value_latent", "query_heads", "attended_latent", "attention_output",
      "mlp",       "mlp_down",     "expert",           "expert_down", "joined",          "head"};
  return kNames[static_cast<std::size_t>(input)];
}
/// Whether it is kept for every expert.
constexpr bool is_of_experts(LinearInput input) { return input == LinearInput::expert || input == LinearInput::expert_down; }

/// Sums over the tokens of one layer, what `calibrate --statistics inputs` measures.
///
/// Over all tokens that ran, counted or not, as llama.cpp's imatrix does; of multi-token-prediction blocks those that have a
/// token to look at. fp64, added within a sequence in the order of its tokens, then sequence after sequence (experts: row
/// after row): the same bytes whatever the number of threads and of token groups.
struct LinearInputs {
  int layer = 0;    ///< absolute layer id
  int tasks = 0;
  int experts = 0;  ///< E; 0 in a dense layer
  std::vector<double> tokens;   ///< [tasks]
  std::vector<double> routed;   ///< [tasks, E] tokens that were routed to the expert
  /// By LinearInput: [tasks, width], of experts [tasks, E, width]. Empty: the layer has no such input.
  std::array<std::vector<double>, kLinearInputs> squares;

  std::vector<double>& of(LinearInput input) { return squares[static_cast<std::size_t>(input)]; }
  const std::vector<double>& of(LinearInput input) const { return squares[static_cast<std::size_t>(input)]; }
};

}  // namespace moetrim
