// Tasks of several statistics folders side by side.
#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "moetrim/task_algebra.h"

namespace moetrim {
namespace {

namespace fs = std::filesystem;

/// Tasks of equal names would be added up by a merge, and nobody could choose or weigh them apart.
void check_names(const std::vector<StatisticsManifest>& manifests, const std::vector<std::string>& folders) {
  std::map<std::string, std::string> holder;
  for (std::size_t i = 0; i < manifests.size(); ++i) {
    for (const auto& task : manifests[i].tasks) {
      const auto [found, added] = holder.emplace(task.name, folders[i]);
      if (added) continue;
      throw InvalidInput(fmt::format("{} and {} both have a task {}; calibrate one under another name, or add the two up with "
                                     "merge-statistics",
                                     found->second, folders[i], in_quotes(task.name)));
    }
  }
}

/// What is not read need not be equal.
StatisticsManifest as_read(StatisticsManifest manifest, bool atoms, const std::string& folder) {
  if (atoms && manifest.expert_width == 0) {
    throw InvalidInput(fmt::format("{}: no second-order statistics; calibrate with --statistics second-order", folder));
  }
  manifest.vectors.reset();
  manifest.row_rank = 0;
  if (!atoms) manifest.expert_width = 0;
  return manifest;
}

}  // namespace

Statistics read_beside(const std::vector<fs::path>& folders, bool atoms) {
  if (folders.size() == 1) return Statistics::read(folders.front(), atoms);
  std::vector<StatisticsManifest> manifests;
  std::vector<std::string> names;
  for (const auto& folder : folders) {
    names.push_back(folder.string());
    manifests.push_back(as_read(read_statistics_manifest(folder), atoms, names.back()));
  }
  check_names(manifests, names);
  const StatisticsMerge merge(std::move(manifests), std::move(names));
  const PartReader read = read_parts(folders);
  Statistics out{.manifest = merge.manifest(), .layers = {}};
  for (const int layer : out.manifest.moe_layers) {
    out.layers.push_back(merge.layer([&](std::size_t part) { return read.layer(part, layer); }));
    if (atoms) out.atoms.push_back(merge.atoms([&](std::size_t part) { return read.atoms(part, layer); }));
  }
  return out;
}

}  // namespace moetrim
