// Statistics on request: what an expert gives out on average, how router logits vary together, extremes of what goes in, and
// what quantisation would cost. One safetensors file per MoE layer beside layer-NNNNN: large, so they are read one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "moetrim/statistics.h"

namespace moetrim {

/// The widths that quantisation errors are measured for: 1 to 4 bits.
inline constexpr int kQuantisationBits = 4;

/// What `calibrate --statistics vectors` measures in one MoE layer, and what `all-experts` and `quantisation` add.
///
/// Over the counted tokens: z are the raw router logits, n the block's normalised input, x an expert's activations (the input of
/// down_proj), f = down x (+ bias) its output, g the gate that multiplies it. Where the router's score multiplies the expert's
/// input instead (Llama-4), x and f of a routed token have it in them and g is 1.
/// Sums are fp64 in the order of the tokens: the same bytes whatever the number of threads and of token groups.
struct ExpertVectors {
  using Facts = StatisticsManifest::Vectors;

  int layer = 0;       ///< absolute layer id
  int tasks = 0;
  int experts = 0;     ///< E
  int width = 0;       ///< F
  int hidden = 0;      ///< H
  int markers = 0;     ///< M
  bool all_experts = false, quantisation = false;

  std::vector<double> logit_gram;         ///< [tasks, E, E] sum of z_i z_j; symmetric
  std::vector<double> routed_activation;  ///< [tasks, E, F] sum of x over routed tokens
  std::vector<double> routed_output;      ///< [tasks, E, H] sum of f over routed tokens
  std::vector<double> output_square;      ///< [tasks, E] sum of |f|^2 over routed tokens
  std::vector<double> input_max;          ///< [tasks, E, H] largest |channel| of the expert's input over routed tokens; a maximum
  std::vector<double> router_input_max;   ///< [tasks, H] largest |channel| of n; a maximum
  std::vector<double> weight_max;         ///< [H] largest |weight| that reads the channel: router, gate_proj and up_proj of all
                                          ///< experts, of shared experts, shared router. Not measured: equal in all parts
  std::vector<double> marker_count;       ///< [tasks, M, E] routed tokens that are part of marker m; empty without markers
  std::vector<double> marker_tokens;      ///< [tasks, M] tokens that are part of marker m

  // With all_experts, else empty. Every expert is run on the same tokens, whether they were routed to it or not, with the
  // block's own input (in Llama-4: as if the router's score were 1).
  std::vector<double> all_tokens;         ///< [tasks] how many tokens those were
  std::vector<double> activation;         ///< [tasks, E, F] sum of x
  std::vector<double> output;             ///< [tasks, E, H] down times that sum, plus all_tokens times the bias: the mean
                                          ///< output is output / all_tokens
  std::vector<double> sample_key;         ///< [N] ascending, whole numbers below 2^53: a hash of the task's digest, the
                                          ///< demonstration and the position. Of all tokens those with the smallest are kept,
                                          ///< so that shares give the sample that one process draws
  std::vector<float> sample_activations;  ///< [E, N, F] x of those tokens: row n is the same token for every expert

  // With quantisation, else empty.
  std::vector<double> quantisation_error; ///< [tasks, E, kQuantisationBits] per demonstration the square root of the sum over
                                          ///< its routed tokens of g^2 |f - f_q|^2, added up over demonstrations

  ExpertVectors() = default;
  /// All zeros, no samples. @throws InvalidInput unless the sizes are at least 1.
  ExpertVectors(int layer, int tasks, int experts, const Facts& facts);

  int samples() const { return static_cast<int>(sample_key.size()); }

  /// Adds sums, takes maxima, and keeps the `sample_limit` samples with the smallest keys.
  /// @throws InvalidInput on another layer, size or other weights.
  void add(const ExpertVectors& other);
  /// The same for one task, whose place may differ in the two; without the samples, which are of all tasks together.
  void add_task(int task, const ExpertVectors& other, int other_task);
  void add_samples(const ExpertVectors& other);

  int sample_limit = 0;   ///< Facts::activation_samples
};

/// Name of a layer's file inside the folder, for example "vectors-00003.safetensors".
std::string vector_file_name(int layer);
/// Equal vectors give equal bytes.
void write_vectors_file(const std::filesystem::path& file, const ExpertVectors& vectors);
/// @param manifest  of the folder: every shape, count and number of tokens is held against it.
/// @throws InvalidInput naming file and tensor.
ExpertVectors read_vectors_file(const std::filesystem::path& file, const StatisticsManifest& manifest);

/// One layer of a statistics folder.
/// @throws InvalidInput naming the file, or saying how to calibrate when there are no vectors.
ExpertVectors read_vectors(const std::filesystem::path& folder, int layer);
/// The same where the manifest was read already.
ExpertVectors read_vectors(const std::filesystem::path& folder, const StatisticsManifest& manifest, int layer);
/// For methods that need more than `vectors`. @param what  for example "hc-smoe"
/// @throws InvalidInput saying how to calibrate when the folder lacks it.
void require_all_experts(const StatisticsManifest& manifest, const std::string& what);
void require_quantisation(const StatisticsManifest& manifest, const std::string& what);

}  // namespace moetrim
