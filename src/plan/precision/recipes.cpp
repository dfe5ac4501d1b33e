// Mixed-precision plans in the languages of the programs that quantise: llama-quantize, llm-compressor, GPTQModel.

#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/precision.h"

namespace moetrim {
namespace {

/// GGUF types by bits. 1 bit is IQ1_S, which llama-quantize makes only with an importance matrix.
constexpr std::string_view kGgufTypes[kQuantisationBits] = {"iq1_s", "q2_K", "q3_K", "q4_K"};
/// The columns that share a scale: those that errors were measured with.
constexpr int kGroupColumns = 128;
/// Bits of what no pattern names.
constexpr int kOtherBits = 4;

using LayerExperts = std::vector<std::pair<int, std::vector<int>>>;  // (absolute layer, experts)

/// By bits, the experts that have them, of the decoder layers.
std::map<int, LayerExperts> by_bits(const PrecisionPlan& plan, int layers) {
  std::map<int, LayerExperts> out;
  for (const PrecisionLayer& layer : plan.layers) {
    if (layer.layer >= layers) continue;
    std::map<int, std::vector<int>> experts;
    for (std::size_t e = 0; e < layer.bits.size(); ++e) experts[layer.bits[e]].push_back(static_cast<int>(e));
    for (auto& [bits, ids] : experts) out[bits].emplace_back(layer.layer, std::move(ids));
  }
  return out;
}

/// A regular expression of the projections' module names, whatever the names of the modules around them. Fused experts have
/// such names once the quantising program has taken them apart.
std::string pattern(int layer, const std::vector<int>& experts) {
  return fmt::format(R"(.*\blayers\.{}\..*\bexperts\.({})\.(gate_proj|up_proj|down_proj|w1|w2|w3)$)", layer,
                     fmt::join(experts, "|"));
}

void refuse_one_bit(const PrecisionPlan& plan, std::string_view program) {
  for (const PrecisionLayer& layer : plan.layers) {
    if (std::find(layer.bits.begin(), layer.bits.end(), 1) == layer.bits.end()) continue;
    throw UsageError(fmt::format("{} has no 1-bit weights of the kind that was measured (sign times mean); use --levels "
                                 "2,3,4", program));
  }
}

}  // namespace

std::string llama_quantize_types(const PrecisionPlan& plan) {
  std::string text;
  for (const PrecisionLayer& layer : plan.layers) {
    if (std::adjacent_find(layer.bits.begin(), layer.bits.end(), std::not_equal_to<>()) != layer.bits.end()) {
      throw UsageError("--llama-quantize: a GGUF file has one tensor for all experts of a layer; use --width-per layer "
                       "--scope global");
    }
    text += fmt::format("blk\\.{}\\.ffn_(gate|up|gate_up|down)_exps\\.weight={}\n", layer.layer,
                        kGgufTypes[static_cast<std::size_t>(layer.bits.front() - 1)]);
  }
  return text;
}

std::string llm_compressor_recipe(const PrecisionPlan& plan, int layers) {
  refuse_one_bit(plan, "--llm-compressor: compressed-tensors");
  std::string text = "quant_stage:\n  quant_modifiers:\n    GPTQModifier:\n      ignore: [lm_head]\n      config_groups:\n";
  for (const auto& [bits, group] : by_bits(plan, layers)) {
    text += fmt::format("        bits_{}:\n          weights: {{num_bits: {}, type: int, symmetric: false, strategy: group, "
                        "group_size: {}}}\n          targets:\n", bits, bits, kGroupColumns);
    for (const auto& [layer, experts] : group) text += fmt::format("            - 're:{}'\n", pattern(layer, experts));
  }
  return text;
}

nlohmann::ordered_json gptqmodel_config(const PrecisionPlan& plan, int layers) {
  refuse_one_bit(plan, "--gptqmodel: GPTQModel");
  nlohmann::ordered_json dynamic = nlohmann::ordered_json::object();
  for (const auto& [bits, group] : by_bits(plan, layers)) {
    for (const auto& [layer, experts] : group) dynamic["+:" + pattern(layer, experts)] = {{"bits", bits}};
  }
  return {{"bits", kOtherBits}, {"group_size", kGroupColumns}, {"dynamic", dynamic}};
}

}  // namespace moetrim
