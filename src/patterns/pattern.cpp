// A task of statistics as a pattern, and back.
#include "moetrim/patterns.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/input_statistics.h"
#include "moetrim/suggest.h"
#include "patterns/head.h"

namespace moetrim {
namespace {

/// The manifest of what a pattern keeps.
StatisticsManifest manifest_of(const StatisticsManifest& all, int task, bool second_order) {
  StatisticsManifest manifest = all;
  manifest.tasks = {all.tasks.at(static_cast<std::size_t>(task))};
  if (manifest.part) manifest.part->whole = {all.part->whole.at(static_cast<std::size_t>(task))};
  manifest.vectors.reset();
  manifest.row_rank = 0;
  forget_inputs(manifest);
  if (!second_order) manifest.expert_width = 0;
  return manifest;
}

AtomStatistics atoms_of(const AtomStatistics& all, int task) {
  AtomStatistics one(all.layer, 1, all.experts, all.width);
  one.down_squares = all.down_squares;
  one.gate_up_squares = all.gate_up_squares;
  one.add_task(0, all, task);
  return one;
}

/// Of one layer of all patterns, side by side.
AtomStatistics atoms_beside(std::span<const Pattern> patterns, std::size_t layer) {
  const AtomStatistics& first = patterns.front().atoms.at(layer);
  AtomStatistics all(first.layer, static_cast<int>(patterns.size()), first.experts, first.width);
  all.down_squares = first.down_squares;
  all.gate_up_squares = first.gate_up_squares;
  for (std::size_t i = 0; i < patterns.size(); ++i) all.add_task(static_cast<int>(i), patterns[i].atoms.at(layer), 0);
  return all;
}

}  // namespace

nlohmann::ordered_json library_head(nlohmann::ordered_json manifest) {
  for (const char* own : {"format", "version", "tool_version", "tasks", "count", "dtype", "settings", "part", "vectors",
                          "row_rank", "expert_width"}) {
    manifest.erase(own);
  }
  return manifest;
}

nlohmann::ordered_json library_head(const StatisticsManifest& manifest) { return library_head(manifest_to_json(manifest)); }

Pattern make_pattern(const Statistics& statistics, int task) {
  Pattern pattern{.manifest = manifest_of(statistics.manifest, task, !statistics.atoms.empty()),
                  .signature = signature_of_task(statistics, task, "task")};
  const auto experts = static_cast<std::size_t>(statistics.manifest.experts);
  for (const LayerStatistics& layer : statistics.layers) {
    pattern.tokens.push_back(layer.task_tokens(task));
    for (std::size_t stat = 0; stat < pattern.values.size(); ++stat) {
      const auto total = layer.task_total(static_cast<Stat>(stat), task);
      auto& values = pattern.values[stat];
      values.reserve(statistics.layers.size() * experts);
      values.insert(values.end(), total.begin(), total.end());
    }
  }
  for (const AtomStatistics& atoms : statistics.atoms) pattern.atoms.push_back(atoms_of(atoms, task));
  return pattern;
}

Statistics statistics_of(std::span<const Pattern> patterns, std::span<const std::string> names) {
  Statistics out{.manifest = patterns.front().manifest, .layers = {}};
  const auto head = library_head(out.manifest);
  out.manifest.tasks.clear();
  if (patterns.size() > 1) out.manifest.part.reset();
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    if (library_head(patterns[i].manifest) != head) {
      throw InvalidInput(fmt::format("pattern {} is of another checkpoint than {}", names[i], names[0]));
    }
    out.manifest.tasks.push_back(patterns[i].manifest.tasks.front());
    out.manifest.tasks.back().name = names[i];
  }
  const bool second_order = std::none_of(patterns.begin(), patterns.end(), [](const Pattern& p) { return p.atoms.empty(); });
  if (!second_order) out.manifest.expert_width = 0;
  const auto tasks = static_cast<int>(patterns.size());
  const int experts = out.manifest.experts;
  for (std::size_t l = 0; l < out.manifest.moe_layers.size(); ++l) {
    LayerStatistics layer(out.manifest.moe_layers[l], tasks, experts);
    for (int task = 0; task < tasks; ++task) {
      const Pattern& pattern = patterns[static_cast<std::size_t>(task)];
      layer.token_count[static_cast<std::size_t>(task) * kSlices] = pattern.tokens[l];
      for (int stat = 0; stat < kStatCount; ++stat) {
        const double* from = pattern.values[static_cast<std::size_t>(stat)].data() + l * static_cast<std::size_t>(experts);
        std::copy_n(from, experts, &layer.at(static_cast<Stat>(stat), task, 0, 0));
      }
    }
    out.layers.push_back(std::move(layer));
    if (second_order) out.atoms.push_back(atoms_beside(patterns, l));
  }
  return out;
}

}  // namespace moetrim
