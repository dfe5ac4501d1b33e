// Mixed-precision plans: the dynamic programme against every allocation there is.

#include "testing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <regex>

#include "moetrim/error.h"
#include "moetrim/precision.h"

using namespace moetrim;

namespace {

constexpr double kNone = std::numeric_limits<double>::infinity();

std::vector<PrecisionFactors> random_factors(int layers, int experts, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> uniform(0.1, 1.0);
  std::vector<PrecisionFactors> out;
  for (int l = 0; l < layers; ++l) {
    PrecisionFactors factors{.layer = 2 * l + 1, .routed = {}, .gates = {}, .errors = {}};
    for (int e = 0; e < experts; ++e) {
      factors.routed.push_back(std::floor(100 * uniform(generator)));
      factors.gates.push_back(uniform(generator));
      // Not always falling with the bits, as measured errors are not.
      factors.errors.push_back({8 * uniform(generator), 4 * uniform(generator), 2 * uniform(generator), uniform(generator)});
    }
    out.push_back(factors);
  }
  return out;
}

double share(const std::vector<double>& values, std::size_t index) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values[index] / sum;
}

double cost(const PrecisionFactors& layer, std::size_t expert, int bits) {
  return share(layer.routed, expert) * std::pow(share(layer.gates, expert), 1.5) *
         layer.errors[expert][static_cast<std::size_t>(bits - 1)];
}

/// Least cost over all layers from `item` on, going through every allocation.
double brute(const std::vector<PrecisionFactors>& factors, const PrecisionRequest& request, std::vector<int>& bits, int left) {
  const std::size_t experts = factors[0].routed.size();
  const std::size_t item = bits.size();
  if (item > 0 && item % experts == 0) {
    for (std::size_t level = 1; level < request.levels.size(); ++level) {
      const auto last = bits.end() - static_cast<std::ptrdiff_t>(experts);
      if (std::find(last, bits.end(), request.levels[level]) == bits.end()) return kNone;
    }
  }
  if (item == factors.size() * experts) return 0;
  double least = kNone;
  for (const int level : request.levels) {
    if (level > left) continue;
    bits.push_back(level);
    least = std::min(least, cost(factors[item / experts], item % experts, level) + brute(factors, request, bits, left - level));
    bits.pop_back();
  }
  return least;
}

}  // namespace

TEST_CASE("the allocation of bits is the best there is", "[plan][precision]") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const auto layers = random_factors(2, 4, seed);
    for (const std::vector<int>& levels : {std::vector{1, 2, 3}, std::vector{2, 4}, std::vector{1, 2, 3, 4}}) {
      const PrecisionRequest request{.bits = levels.front() + 1.55, .levels = levels, .scope = PrecisionScope::global};
      std::vector<int> bits;
      const int budget = static_cast<int>(request.bits * 8);
      const auto plan = plan_precision(layers, request);
      CHECK(std::abs(plan.loss - brute(layers, request, bits, budget)) < 1e-12);
      CHECK(plan.average * 8 <= budget);
      const PrecisionRequest alone{.bits = request.bits, .levels = levels};
      const auto each = plan_precision(layers, alone);
      for (std::size_t l = 0; l < 2; ++l) {
        CHECK(std::abs(each.layers[l].loss - brute({layers[l]}, alone, bits, static_cast<int>(request.bits * 4))) < 1e-12);
      }
      CHECK(plan.loss <= each.loss + 1e-12);
    }
  }
}

TEST_CASE("equal experts: lower ids get fewer bits", "[plan][precision]") {
  const PrecisionFactors equal{.layer = 0, .routed = {5, 5, 5, 5}, .gates = {1, 1, 1, 1},
                               .errors = {{3, 2, 1, 0}, {3, 2, 1, 0}, {3, 2, 1, 0}, {3, 2, 1, 0}}};
  CHECK(plan_precision({{equal}}, {.bits = 2.0}).layers[0].bits == std::vector{1, 2, 2, 3});
  // Nobody needs more than the demand for every level where nothing was routed.
  const PrecisionFactors unseen{.layer = 0, .routed = {0, 0, 0, 0}, .gates = {0, 0, 0, 0}, .errors = {{}, {}, {}, {}}};
  CHECK(plan_precision({{unseen}}, {.bits = 2.5}).layers[0].bits == std::vector{1, 1, 2, 3});
  CHECK_THROWS_AS(plan_precision({{equal}}, {.bits = 1.5}), UsageError);
  CHECK_THROWS_AS(plan_precision({{equal}}, {.bits = 3.5}), UsageError);
}

TEST_CASE("every expert module is in one group of a recipe", "[plan][precision]") {
  const auto layers = random_factors(12, 12, 7);
  const auto plan = plan_precision(layers, {.bits = 3, .levels = {2, 3, 4}});
  const auto config = gptqmodel_config(plan, 24);
  const auto recipe = llm_compressor_recipe(plan, 24);
  for (const PrecisionLayer& layer : plan.layers) {
    for (std::size_t e = 0; e < layer.bits.size(); ++e) {
      const std::string name = "model.layers." + std::to_string(layer.layer) + ".mlp.experts." + std::to_string(e) + ".up_proj";
      int matches = 0;
      for (const auto& [key, value] : config["dynamic"].items()) {
        if (!std::regex_match(name, std::regex(key.substr(2)))) continue;
        ++matches;
        CHECK(value["bits"] == layer.bits[e]);
        CHECK(recipe.find("- 're:" + key.substr(2) + "'") != std::string::npos);
      }
      CHECK(matches == 1);
    }
  }
  CHECK(gptqmodel_config(plan, 5)["dynamic"].size() < config["dynamic"].size());
  CHECK_THROWS_AS(llm_compressor_recipe(plan_precision(layers, {.bits = 2}), 24), UsageError);
  CHECK_THROWS_AS(llama_quantize_types(plan), UsageError);
  const auto whole = plan_precision(layers, {.bits = 2.5, .scope = PrecisionScope::global, .unit = PrecisionUnit::layer});
  CHECK(whole.average == 2.5);
  const std::string types = llama_quantize_types(whole);
  CHECK(std::count(types.begin(), types.end(), '\n') == 12);
  const std::string first = types.substr(0, types.find('='));
  CHECK(std::regex_search("blk.1.ffn_gate_exps.weight", std::regex(first)));
  CHECK(!std::regex_search("blk.11.ffn_gate_exps.weight", std::regex(first)));
}
