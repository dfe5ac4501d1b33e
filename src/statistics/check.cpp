// What must hold between a manifest and its layers.
#include "statistics/check.h"

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

void check_equal(const std::string& where, const std::string& what, double manifest_says, double got) {
  if (manifest_says == got) return;
  throw InvalidInput(fmt::format("{}: {} is {}, the manifest says {}; the file belongs to another run", where, what, got,
                                 manifest_says));
}

/// What layer files and atom files have in common.
template <class File>
void check_size(const StatisticsManifest& manifest, std::size_t index, const File& file, const std::string& where) {
  check_equal(where, "layer", manifest.moe_layers.at(index), file.layer);
  check_equal(where, "number of experts", manifest.experts, file.experts);
  check_equal(where, "number of tasks", static_cast<double>(manifest.tasks.size()), file.tasks);
}

}  // namespace

void check_layer(const StatisticsManifest& manifest, std::size_t index, const LayerStatistics& layer,
                 const std::string& where) {
  check_size(manifest, index, layer, where);
  for (int task = 0; task < layer.tasks; ++task) {
    const auto& facts = manifest.tasks[static_cast<std::size_t>(task)];
    const auto counted = static_cast<double>(facts.counted_tokens);
    // A multi-token-prediction block has nothing to predict at the end of a sequence.
    const bool fewer = layer.layer >= manifest.layers && layer.task_tokens(task) < counted;
    if (!fewer) check_equal(where, "token_count of task " + facts.name, counted, layer.task_tokens(task));
  }
}

void check_atoms(const StatisticsManifest& manifest, std::size_t index, const AtomStatistics& atoms,
                 const std::string& where) {
  check_size(manifest, index, atoms, where);
  check_equal(where, "number of atomic experts", manifest.expert_width, atoms.width);
  for (std::size_t i = 0; i < atoms.tokens.size(); ++i) {
    const auto& facts = manifest.tasks[i / static_cast<std::size_t>(atoms.experts)];
    if (atoms.tokens[i] <= static_cast<double>(facts.tokens)) continue;
    throw InvalidInput(fmt::format("{}: tensor tokens, element {}: {} tokens were routed to an expert, of {} of task {} in "
                                   "the manifest",
                                   where, i, atoms.tokens[i], facts.tokens, facts.name));
  }
}

void check_statistics(const Statistics& statistics, const std::string& where) {
  const auto& manifest = statistics.manifest;
  if (statistics.layers.size() != manifest.moe_layers.size()) {
    throw InvalidInput(fmt::format("{}: {} layers for {} in the manifest", where, statistics.layers.size(),
                                   manifest.moe_layers.size()));
  }
  for (std::size_t i = 0; i < statistics.layers.size(); ++i) check_layer(manifest, i, statistics.layers[i], where);
  const std::size_t expected = manifest.expert_width > 0 ? manifest.moe_layers.size() : 0;
  if (statistics.atoms.size() != expected) {
    throw InvalidInput(fmt::format("{}: second-order statistics of {} layers for {} in the manifest", where,
                                   statistics.atoms.size(), expected));
  }
  for (std::size_t i = 0; i < statistics.atoms.size(); ++i) check_atoms(manifest, i, statistics.atoms[i], where);
}

}  // namespace moetrim
