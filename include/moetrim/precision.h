// Mixed-precision plans: how many bits every expert is worth, from how often it is used and what quantising it costs.
//
// Source: PMQ of MC-MoE (arXiv 2410.06270) and MC# (arXiv 2510.10962). Of one layer, expert j at b bits costs
//   (phi_j / sum phi)^a (w_j / sum w)^b' eps_{j,b}^c,
// phi: routed tokens; w: sum of gate weights; eps: error of the expert's output, see ExpertVectors::quantisation_error. The
// sum over the experts is made least under a budget of bits, exactly, by dynamic programming. PMQ's w is the router's
// softmax over all experts, not renormalised; ours is the gate weight that was executed, which differs where gates are
// renormalised.
#pragma once

#include <array>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/statistics.h"
#include "moetrim/vectors.h"

namespace moetrim {

/// Where the budget is shared out.
enum class PrecisionScope {
  layer,   ///< as many bits in every layer (PMQ)
  global,  ///< one budget for all layers
};
/// "layer", "global". @throws UsageError
PrecisionScope precision_scope_from_name(std::string_view name);

/// What has one width.
enum class PrecisionUnit {
  expert,  ///< an expert: its three matrices
  layer,   ///< all experts of a layer, which GGUF files store as one tensor per projection; the scope is then global
};
/// "expert", "layer". @throws UsageError
PrecisionUnit precision_unit_from_name(std::string_view name);

struct PrecisionRequest {
  double bits = 2.5;                     ///< average per weight of the experts, an upper bound
  std::vector<int> levels = {1, 2, 3};   ///< widths to choose from, ascending, two or more, each from 1 to kQuantisationBits
  PrecisionScope scope = PrecisionScope::layer;
  PrecisionUnit unit = PrecisionUnit::expert;
  std::array<double, 3> exponents = {1, 1.5, 1};  ///< of phi, w and eps
};

/// Whether a request can be met at all. @throws UsageError
void check_precision_request(const PrecisionRequest& request);

/// What is known about one layer's experts, all tasks together.
struct PrecisionFactors {
  int layer = 0;                                      ///< absolute id
  std::vector<double> routed;                         ///< phi [E]
  std::vector<double> gates;                          ///< w [E]
  std::vector<std::array<double, kQuantisationBits>> errors;  ///< eps [E], of 1, 2, … bits
};

/// Reads them from statistics of `calibrate --statistics quantisation`.
/// @throws InvalidInput when quantisation errors were not measured, or as Statistics::read does.
std::vector<PrecisionFactors> precision_factors(const std::filesystem::path& folder, const Statistics& statistics);

struct PrecisionLayer {
  int layer = 0;           ///< absolute id
  std::vector<int> bits;   ///< [E]
  double loss = 0;         ///< what they cost
};

struct PrecisionPlan {
  PrecisionRequest request;
  double average = 0;      ///< bits that are used, mean over the experts
  double loss = 0;         ///< sum over the layers
  int unseen = 0;          ///< experts that no counted token reached, which cost nothing and get the fewest bits
  std::vector<double> uniform;  ///< the same with every expert at that level, parallel to request.levels
  std::vector<PrecisionLayer> layers;
};

/// The allocation of least cost. Where experts have widths of their own, every layer uses each level but the lowest at least
/// once, as PMQ demands. Of allocations that cost the same the one that gives fewer bits to lower ids: first layers, then
/// experts.
/// @throws UsageError as check_precision_request does, and for a budget under which no allocation is possible, naming the
///         least; InvalidInput for factors that are not finite or below zero.
PrecisionPlan plan_precision(std::span<const PrecisionFactors> factors, const PrecisionRequest& request);

/// `{"format": "moetrim-precision", …, "layers": [{"layer", "loss", "bits": […]}]}`, with what the statistics are of.
nlohmann::ordered_json precision_to_json(const PrecisionPlan& plan, const StatisticsManifest& manifest);

/// Lines for `llama-quantize --tensor-type-file`: a pattern of tensor names and a type for every layer.
/// @throws UsageError unless all experts of a layer have one width: GGUF has one tensor for them.
std::string llama_quantize_types(const PrecisionPlan& plan);
/// A recipe of llm-compressor: GPTQ with one group of targets per width, in groups of 128 columns.
/// @param layers  decoder layers; blocks after them are not part of the model that llm-compressor loads.
/// @throws UsageError for 1 bit, which integer codes with a scale and a zero cannot say as it was measured.
std::string llm_compressor_recipe(const PrecisionPlan& plan, int layers);
/// Arguments of GPTQModel's QuantizeConfig: 4 bits, and `dynamic` with a pattern per layer and width.
/// @throws UsageError for 1 bit, which GPTQModel does not have.
nlohmann::ordered_json gptqmodel_config(const PrecisionPlan& plan, int layers);

}  // namespace moetrim
