// A statistics folder as a whole: manifest and layer files, read with every cross-check and written by rename.
#include "moetrim/statistics.h"

#include <algorithm>
#include <system_error>

#include <unistd.h>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "statistics/check.h"

namespace moetrim {
namespace {

namespace fs = std::filesystem;

constexpr const char* kManifestName = "manifest.json";

/// A layer file that the manifest does not list was left by another run, or by one that did not finish.
void refuse_extra_layer_files(const fs::path& folder, const StatisticsManifest& manifest) {
  std::vector<std::string> extra;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("layer-")) continue;
    const auto expected = [&](int layer) { return layer_file_name(layer) == name; };
    if (std::none_of(manifest.moe_layers.begin(), manifest.moe_layers.end(), expected)) extra.push_back(name);
  }
  if (extra.empty()) return;
  const auto first = std::min_element(extra.begin(), extra.end());
  throw InvalidInput(fmt::format("{}: the manifest lists no such layer; remove the file, or use the folder it belongs to",
                                 (folder / *first).string()));
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

void write_files(const fs::path& folder, const Statistics& statistics) {
  for (const auto& layer : statistics.layers) write_layer_statistics(folder / layer_file_name(layer.layer), layer);
  write_file_atomically(folder / kManifestName, manifest_to_json(statistics.manifest).dump(2) + "\n");
}

}  // namespace

Statistics Statistics::read(const fs::path& folder) {
  if (!fs::is_directory(folder)) throw InvalidInput(fmt::format("{}: no such statistics folder", folder.string()));
  const fs::path file = folder / kManifestName;
  if (!fs::exists(file)) {
    throw InvalidInput(fmt::format("{}: is missing; the folder is no statistics folder, or its calibration has not finished",
                                   file.string()));
  }
  Statistics statistics;
  statistics.manifest = manifest_from_json(read_json_file(file), file);
  refuse_extra_layer_files(folder, statistics.manifest);
  for (std::size_t i = 0; i < statistics.manifest.moe_layers.size(); ++i) {
    const fs::path layer_file = folder / layer_file_name(statistics.manifest.moe_layers[i]);
    if (!fs::exists(layer_file)) {
      throw InvalidInput(fmt::format("{}: is missing, but the manifest lists the layer", layer_file.string()));
    }
    statistics.layers.push_back(read_layer_statistics(layer_file));
    check_layer(statistics.manifest, i, statistics.layers.back(), layer_file.string());
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

void write_statistics(const fs::path& folder, const Statistics& statistics) {
  const fs::path target = folder.has_filename() ? folder : folder.parent_path();
  if (fs::exists(fs::symlink_status(target))) {
    throw InvalidInput(fmt::format("{}: exists already; choose another name or remove it", target.string()));
  }
  check_statistics(statistics, "statistics for " + target.string());
  const fs::path staging = make_staging_folder(target);
  try {
    write_files(staging, statistics);
    fs::rename(staging, target);
  } catch (...) {
    std::error_code ignored;  // the first error is the one to report
    fs::remove_all(staging, ignored);
    throw;
  }
}

}  // namespace moetrim
