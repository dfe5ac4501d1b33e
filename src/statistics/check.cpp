// What must hold between a manifest and its layers.
#include "statistics/check.h"

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

void check_layer(const StatisticsManifest& manifest, std::size_t index, const LayerStatistics& layer,
                 const std::string& where) {
  const auto differs = [&](const char* what, double manifest_says, double got) {
    throw InvalidInput(fmt::format("{}: {} is {}, the manifest says {}; the file belongs to another run", where, what, got,
                                   manifest_says));
  };
  if (layer.layer != manifest.moe_layers.at(index)) differs("layer", manifest.moe_layers.at(index), layer.layer);
  if (layer.experts != manifest.experts) differs("number of experts", manifest.experts, layer.experts);
  if (layer.tasks != static_cast<int>(manifest.tasks.size())) {
    differs("number of tasks", static_cast<double>(manifest.tasks.size()), layer.tasks);
  }
  for (int task = 0; task < layer.tasks; ++task) {
    const auto& facts = manifest.tasks[static_cast<std::size_t>(task)];
    const auto counted = static_cast<double>(facts.counted_tokens);
    // A multi-token-prediction block has nothing to predict at the end of a sequence.
    const bool fewer = layer.layer >= manifest.layers && layer.task_tokens(task) < counted;
    if (layer.task_tokens(task) != counted && !fewer) {
      differs(fmt::format("token_count of task {}", facts.name).c_str(), counted, layer.task_tokens(task));
    }
  }
}

void check_statistics(const Statistics& statistics, const std::string& where) {
  const auto& manifest = statistics.manifest;
  if (statistics.layers.size() != manifest.moe_layers.size()) {
    throw InvalidInput(fmt::format("{}: {} layers for {} in the manifest", where, statistics.layers.size(),
                                   manifest.moe_layers.size()));
  }
  for (std::size_t i = 0; i < statistics.layers.size(); ++i) check_layer(manifest, i, statistics.layers[i], where);
}

}  // namespace moetrim
