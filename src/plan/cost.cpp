// Bytes and multiply-adds that a plan leaves.
#include "plan/cost.h"

#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

bool has_sizes(const StatisticsManifest& manifest) { return manifest.sizes != StatisticsManifest::Sizes{}; }

std::int64_t expected_bytes(const StatisticsManifest& manifest, std::int64_t dropped_experts, std::int64_t removed_atoms) {
  if (!has_sizes(manifest)) {
    throw InvalidInput("budget-bytes: the statistics do not say what an expert weighs (sizes in manifest.json); calibrate "
                       "again with this version, or say how many stay");
  }
  const auto& sizes = manifest.sizes;
  return sizes.checkpoint_bytes - dropped_experts * sizes.expert_bytes - removed_atoms * sizes.atom_bytes;
}

bool bytes_fit(std::int64_t bytes, std::uint64_t budget) {
  return bytes <= 0 || static_cast<std::uint64_t>(bytes) <= budget;
}

ExpertFlops::ExpertFlops(const std::vector<PlanLayer>& layers, const std::vector<std::vector<double>>& routed, int width) {
  double all = 0;
  for (const auto& layer : routed) all += std::accumulate(layer.begin(), layer.end(), 0.0);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto& keep = layers[l].keep;
    const double total = std::accumulate(routed[l].begin(), routed[l].end(), 0.0);
    const double of_layer = all == 0 ? 1 / static_cast<double>(layers.size()) : total / all;
    const auto tokens = [&](int expert) { return routed[l][static_cast<std::size_t>(expert)]; };
    double kept = 0;
    for (const int expert : keep) kept += tokens(expert);
    for (const int expert : keep) {
      const double usage = kept == 0 ? 1 / static_cast<double>(keep.size()) : tokens(expert) / kept;
      weights_.push_back(of_layer * usage / width);
    }
  }
}

double ExpertFlops::share(const std::vector<int>& widths) const {
  return std::inner_product(widths.begin(), widths.end(), weights_.begin(), 0.0);
}

}  // namespace moetrim
