// A statistics folder as a whole: manifest and layer files, read with every cross-check and written by rename.
#include "moetrim/statistics.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/input_statistics.h"
#include "moetrim/row_statistics.h"
#include "moetrim/suggest.h"
#include "moetrim/vectors.h"
#include "statistics/check.h"

namespace moetrim {
namespace {

namespace fs = std::filesystem;

constexpr const char* kManifestName = "manifest.json";

/// The names of the files that belong to the manifest, beside manifest.json itself.
std::set<std::string> file_names(const StatisticsManifest& manifest) {
  std::set<std::string> names;
  for (const int layer : manifest.moe_layers) {
    names.insert(layer_file_name(layer));
    if (manifest.expert_width > 0) names.insert(atom_file_name(layer));
    if (manifest.vectors) names.insert(vector_file_name(layer));
    if (manifest.row_rank > 0) names.insert(row_file_name(layer));
  }
  for (const int layer : input_layers(manifest)) names.insert(input_file_name(layer));
  return names;
}

/// What a file of a layer holds, in words; empty for other files.
std::string_view kind_of(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kKinds{{{"layer-", "layer"},
                                                                                   {"atoms-", "second-order statistics"},
                                                                                   {"vectors-", "vectors"},
                                                                                   {"rows-", "row importance"},
                                                                                   {"inputs-", "inputs of linear layers"}}};
  for (const auto& [prefix, kind] : kKinds) {
    if (name.starts_with(prefix)) return kind;
  }
  return {};
}

/// A file that the manifest does not list was left by another run, or by one that did not finish. Files that are not read
/// must be there too: whoever reads them later should not be the first to find out.
void check_files(const fs::path& folder, const StatisticsManifest& manifest) {
  const std::set<std::string> expected = file_names(manifest);
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!kind_of(name).empty()) found.insert(name);
  }
  for (const std::string& name : found) {
    if (expected.contains(name)) continue;
    throw InvalidInput(fmt::format("{}: the manifest lists no such {}; remove the file, or use the folder it belongs to",
                                   (folder / name).string(), kind_of(name)));
  }
  for (const std::string& name : expected) {
    if (found.contains(name)) continue;
    throw InvalidInput(fmt::format("{}: is missing, but the manifest lists the layer", (folder / name).string()));
  }
}

/// Makes a new folder beside the target. The process id keeps two runs apart on one machine, the attempt across machines.
fs::path make_staging_folder(const fs::path& target) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    fs::path staging = target;
    staging += fmt::format(".writing-{}-{}", getpid(), attempt);
    std::error_code error;
    if (fs::create_directory(staging, error)) return staging;
    if (error) throw Error(fmt::format("{}: cannot make this folder: {}", staging.string(), error.message()));
  }
  throw Error(fmt::format("{}: too many unfinished folders beside it; remove {}.writing-*", target.string(),
                          target.string()));
}

/// Fills a new folder beside the target and renames it when it is whole.
void write_folder(const fs::path& folder, const StatisticsManifest& manifest, const std::function<void(const fs::path&)>& write_layers) {
  const fs::path target = folder.has_filename() ? folder : folder.parent_path();
  if (fs::exists(fs::symlink_status(target))) {
    throw InvalidInput(fmt::format("{}: exists already; choose another name or remove it", target.string()));
  }
  const std::string json = manifest_to_json(manifest).dump(2) + "\n";
  const fs::path staging = make_staging_folder(target);
  try {
    write_layers(staging);
    write_file_atomically(staging / kManifestName, json);
    fs::rename(staging, target);
  } catch (...) {
    std::error_code ignored;  // the first error is the one to report
    fs::remove_all(staging, ignored);
    throw;
  }
}

}  // namespace

StatisticsManifest read_statistics_manifest(const fs::path& folder) {
  if (!fs::is_directory(folder)) throw InvalidInput(fmt::format("{}: no such statistics folder", folder.string()));
  const fs::path file = folder / kManifestName;
  if (!fs::exists(file)) {
    throw InvalidInput(fmt::format("{}: is missing; the folder is no statistics folder, or its calibration has not finished",
                                   file.string()));
  }
  return manifest_from_json(read_json_file(file), file);
}

Statistics Statistics::read(const fs::path& folder, bool atoms) {
  Statistics statistics{.manifest = read_statistics_manifest(folder), .layers = {}};
  const auto& manifest = statistics.manifest;
  if (atoms && manifest.expert_width == 0) {
    throw InvalidInput(fmt::format("{}: has no second-order statistics; calibrate with --statistics second-order",
                                   folder.string()));
  }
  check_files(folder, manifest);
  for (std::size_t i = 0; i < manifest.moe_layers.size(); ++i) {
    const fs::path file = folder / layer_file_name(manifest.moe_layers[i]);
    statistics.layers.push_back(read_layer_statistics(file));
    check_layer(manifest, i, statistics.layers.back(), file.string());
  }
  for (std::size_t i = 0; atoms && i < manifest.moe_layers.size(); ++i) {
    const fs::path file = folder / atom_file_name(manifest.moe_layers[i]);
    statistics.atoms.push_back(read_atom_statistics(file));
    check_atoms(manifest, i, statistics.atoms.back(), file.string());
  }
  return statistics;
}

int Statistics::task(std::string_view name) const {
  std::vector<std::string> names;
  std::string list;
  for (const auto& facts : manifest.tasks) {
    if (facts.name == name) return static_cast<int>(names.size());
    names.push_back(facts.name);
    list += (list.empty() ? "" : ", ") + facts.name;
  }
  throw InvalidInput(
      fmt::format("no task {} in the statistics{}; there are: {}", in_quotes(name), did_you_mean(name, names), list));
}

std::vector<int> Statistics::tasks(const std::vector<std::string>& names) const {
  std::vector<int> ids;
  for (const auto& name : names) ids.push_back(task(name));
  if (names.empty()) {
    ids.resize(manifest.tasks.size());
    std::iota(ids.begin(), ids.end(), 0);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

void write_statistics(const fs::path& folder, const Statistics& statistics) {
  check_statistics(statistics, "statistics for " + folder.string());
  if (statistics.manifest.vectors || statistics.manifest.row_rank > 0 || has_inputs(statistics.manifest)) {
    const char* what = statistics.manifest.vectors ? "vectors" : statistics.manifest.row_rank > 0 ? "rows" : "inputs";
    throw InvalidInput(fmt::format("statistics for {}: the manifest announces {}, which are not held in memory", folder.string(), what));
  }
  write_folder(folder, statistics.manifest, [&](const fs::path& staging) {
    for (const auto& layer : statistics.layers) write_layer_statistics(staging / layer_file_name(layer.layer), layer);
    for (const auto& atoms : statistics.atoms) write_atom_statistics(staging / atom_file_name(atoms.layer), atoms);
  });
}

PartReader read_parts(const std::vector<fs::path>& folders) {
  std::vector<StatisticsManifest> manifests;
  for (const fs::path& folder : folders) {
    manifests.push_back(read_statistics_manifest(folder));
    check_files(folder, manifests.back());
  }
  const auto index_of = [](const StatisticsManifest& manifest, int layer) {
    const auto& layers = manifest.moe_layers;
    return static_cast<std::size_t>(std::lower_bound(layers.begin(), layers.end(), layer) - layers.begin());
  };
  return {.layer =
              [=](std::size_t part, int id) {
                const fs::path file = folders[part] / layer_file_name(id);
                LayerStatistics layer = read_layer_statistics(file);
                check_layer(manifests[part], index_of(manifests[part], id), layer, file.string());
                return layer;
              },
          .atoms =
              [=](std::size_t part, int id) {
                const fs::path file = folders[part] / atom_file_name(id);
                AtomStatistics atoms = read_atom_statistics(file);
                check_atoms(manifests[part], index_of(manifests[part], id), atoms, file.string());
                return atoms;
              },
          .vectors = [=](std::size_t part, int id) { return read_vectors(folders[part], manifests[part], id); },
          .rows = [=](std::size_t part, int id) { return read_row_statistics(folders[part], manifests[part], id); }};
}

void write_merged_statistics(const fs::path& folder, const StatisticsMerge& merge, const PartReader& read) {
  if (has_inputs(merge.manifest())) throw Error("statistics with inputs were to be merged without them");
  write_merged_statistics(folder, merge, read, {});
}

void write_merged_statistics(const fs::path& folder, const StatisticsMerge& merge, const PartReader& read,
                             const InputParts& inputs) {
  const auto& manifest = merge.manifest();
  write_folder(folder, manifest, [&](const fs::path& staging) {
    for (std::size_t i = 0; i < manifest.moe_layers.size(); ++i) {
      const int id = manifest.moe_layers[i];
      const auto layer = merge.layer([&](std::size_t part) { return read.layer(part, id); });
      check_layer(manifest, i, layer, "sum for " + folder.string());
      write_layer_statistics(staging / layer_file_name(id), layer);
      if (manifest.expert_width > 0) {
        const auto atoms = merge.atoms([&](std::size_t part) { return read.atoms(part, id); });
        check_atoms(manifest, i, atoms, "sum for " + folder.string());
        write_atom_statistics(staging / atom_file_name(id), atoms);
      }
      // The order is that in which collect_statistics sends them.
      if (manifest.vectors) {
        const auto vectors = merge.vectors([&](std::size_t part) { return read.vectors(part, id); });
        write_vectors_file(staging / vector_file_name(id), vectors);
      }
      if (manifest.row_rank == 0) continue;
      const auto rows = merge.rows([&](std::size_t part) { return read.rows(part, id); });
      write_row_statistics(staging / row_file_name(id), rows);
    }
    for (const int id : input_layers(manifest)) {
      write_input_statistics(staging / input_file_name(id), merge_inputs(manifest, inputs, id));
    }
  });
}

}  // namespace moetrim
