// Plans that replace experts by constants.

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/replace.h"

namespace moetrim {

void check_replace(const StatisticsManifest& manifest) {
  const Family* family = find_family(manifest.family);
  if (family != nullptr && family->has(Role::fused_down_bias)) return;
  throw InvalidInput(fmt::format("experts of {} have no bias in their down projection that could hold a constant; drop them "
                                 "instead (moetrim plan)", manifest.family));
}

void replace_dropped(Plan& plan, int width) {
  for (PlanLayer& layer : plan.layers) {
    const std::vector<int> kept = layer.keep;
    layer.keep.resize(static_cast<std::size_t>(plan.experts));
    std::iota(layer.keep.begin(), layer.keep.end(), 0);
    std::set_difference(layer.keep.begin(), layer.keep.end(), kept.begin(), kept.end(), std::back_inserter(layer.constant));
    layer.kept_mass.reset();  // every router row stays
    if (width == 0) continue;
    for (const int expert : layer.keep) {
      const bool stays = std::binary_search(kept.begin(), kept.end(), expert);
      layer.atoms.push_back(stays ? AtomRanges{{0, width}} : AtomRanges{});
    }
  }
  plan.keep = plan.experts;
  plan.counts = LayerCounts::equal;
  plan.width = width;
}

}  // namespace moetrim
