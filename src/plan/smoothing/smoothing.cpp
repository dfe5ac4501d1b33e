// Smoothing factors of every hidden channel, from the extremes of what goes into a block and of the weights that read it.

#include "moetrim/smoothing.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

/// Largest of every channel, over all rows of `values`.
void raise(std::vector<double>& largest, const std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    double& channel = largest[i % largest.size()];
    channel = std::max(channel, values[i]);
  }
}

}  // namespace

SmoothRounding smooth_rounding_from_name(std::string_view name) {
  if (name == "power-of-two") return SmoothRounding::power_of_two;
  if (name == "none") return SmoothRounding::none;
  throw UsageError(fmt::format("--rounding {}: expected power-of-two or none", in_quotes(name)));
}

void check_smooth_request(const SmoothRequest& request) {
  if (!(request.alpha >= 0 && request.alpha <= 1)) {
    throw UsageError(fmt::format("--alpha {}: expected a number from 0 to 1", request.alpha));
  }
}

std::vector<float> smoothing_factors(const ExpertVectors& vectors, const SmoothRequest& request) {
  check_smooth_request(request);
  std::vector<double> inputs(static_cast<std::size_t>(vectors.hidden));
  raise(inputs, vectors.input_max);
  raise(inputs, vectors.router_input_max);
  std::vector<float> factors;
  for (std::size_t channel = 0; channel < inputs.size(); ++channel) {
    const double weight = vectors.weight_max[channel];
    double factor = 1;
    if (inputs[channel] > 0 && weight > 0) {
      factor = std::pow(inputs[channel], request.alpha) / std::pow(weight, 1 - request.alpha);
      if (request.rounding == SmoothRounding::power_of_two) factor = std::exp2(std::round(std::log2(factor)));
    }
    factors.push_back(static_cast<float>(factor));
  }
  return factors;
}

void add_smoothing(Plan& plan, const std::filesystem::path& folder, const StatisticsManifest& manifest,
                   const SmoothRequest& request) {
  check_smooth_request(request);
  if (plan.checkpoint_fingerprint != manifest.checkpoint_fingerprint) {
    throw InvalidInput(fmt::format("the plan is of checkpoint {}, the statistics {} of {}", plan.checkpoint_fingerprint,
                                   folder.string(), manifest.checkpoint_fingerprint));
  }
  for (PlanLayer& layer : plan.layers) {
    const auto& measured = manifest.moe_layers;
    if (std::find(measured.begin(), measured.end(), layer.layer) == measured.end()) {
      throw InvalidInput(fmt::format("{}: layer {} of the plan was not measured", folder.string(), layer.layer));
    }
    layer.smooth = smoothing_factors(read_vectors(folder, manifest, layer.layer), request);
  }
}

}  // namespace moetrim
