// What the forward pass can sum over a layer while its weights are there.
#pragma once

#include <cstdint>
#include <span>

#include "moetrim/linear_inputs.h"

namespace moetrim {

/// A layer's sums, in the caller's memory; ExpertVectors says what they mean. They are added to, in the order of the tokens of
/// an expert, so that they have the same bytes whatever the number of threads, and whatever part of the tokens a batch holds.
struct VectorSums {
  LinearInputs* inputs = nullptr;   ///< of any layer: what its linear layers read is added here; null: not wanted

  // The rest is of an MoE layer's experts. What is measured; T: the tokens of the batch.
  int tasks = 0;                                ///< 0: none of it is wanted
  std::span<const std::int32_t> task;           ///< [T] -1: the token is not measured
  std::span<const std::int32_t> demonstration;  ///< [T] ascending: quantisation errors are squares within one, roots between them
  std::span<const std::int32_t> common_tokens;  ///< those that every expert is run on, ascending, all of them measured
  std::span<const std::int32_t> sample_rows;    ///< [common_tokens] row among the samples, or -1

  std::span<double> logit_gram;           ///< [tasks, E, E]
  std::span<double> routed_activation;    ///< [tasks, E, F]
  std::span<double> routed_output;        ///< [tasks, E, H]
  std::span<double> output_square;        ///< [tasks, E]
  std::span<double> input_max;            ///< [tasks, E, H]
  std::span<double> router_input_max;     ///< [tasks, H]
  std::span<double> weight_max;           ///< [H]; empty: known already
  std::span<double> all_tokens;           ///< [tasks]; this and the next three are empty unless every expert runs on tokens
  std::span<double> activation;           ///< [tasks, E, F]
  std::span<double> output;               ///< [tasks, E, H] replaced: down times the activation there is then
  std::span<float> sample_activations;    ///< [E, samples, F]
  std::span<double> quantisation_error;   ///< [tasks, E, kQuantisedRuns]; empty: not wanted

  /// Whether experts are needed that no token of the batch is routed to.
  bool visits_every_expert() const { return !weight_max.empty() || !common_tokens.empty(); }
};

/// Experts are run with weights of 1 to so many bits.
inline constexpr int kQuantisedRuns = 4;

}  // namespace moetrim
