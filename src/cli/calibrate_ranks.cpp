// A calibration by several ranks: shares measured beside the output, then added up.

#include <fmt/format.h>

#include "cli/ranks.h"
#include "moetrim/error.h"

namespace moetrim::cli {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kUnfinished = ".partial";

fs::path without_slash(const fs::path& folder) { return folder.has_filename() ? folder : folder.parent_path(); }

std::string part_name(const fs::path& output, const RankPlace& place) {
  return fmt::format("{}.rank-{}-of-{}", output.filename().string(), place.rank, place.ranks);
}

/// Shares of another number of ranks cannot be used, and should not be forgotten either.
void refuse_other_parts(const fs::path& output, int ranks) {
  const std::string prefix = output.filename().string() + ".rank-";
  const std::string ending = fmt::format("-of-{}", ranks);
  const fs::path parent = fs::absolute(output).parent_path();
  if (!fs::is_directory(parent)) return;
  for (const auto& entry : fs::directory_iterator(parent)) {
    std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    if (name.ends_with(kUnfinished)) name.resize(name.size() - kUnfinished.size());
    if (name.ends_with(ending)) continue;
    throw InvalidInput(fmt::format("{} is of a run with another number of ranks than {}; start as many again, or remove it",
                                   entry.path().string(), ranks));
  }
}

/// Whether a run before this one has measured the share to its end.
bool is_measured(const fs::path& part, const StatisticsManifest& wanted) {
  if (!fs::exists(part)) return false;
  StatisticsManifest found = read_statistics_manifest(part);
  for (auto& task : found.tasks) task.loss = 0;
  if (manifest_to_json(found) == manifest_to_json(wanted)) return true;
  throw InvalidInput(fmt::format("{} is of another run; remove it, or repeat the command that began it", part.string()));
}

}  // namespace

std::optional<StatisticsManifest> calibrate_by_ranks(RankGroup& ranks, const Model& model, const std::vector<Task>& tasks,
                                                     CalibrateOptions options, const fs::path& output_folder) {
  const RankPlace& place = ranks.place();
  const fs::path output = without_slash(output_folder);
  const fs::path part = output.parent_path() / part_name(output, place);
  if (place.rank == 0 && fs::exists(output)) {
    throw InvalidInput(fmt::format("{} exists already; remove it or choose another -o", output.string()));
  }
  refuse_other_parts(output, place.ranks);
  if (options.second_order && options.max_disk == 0) {
    const auto space = fs::space(fs::absolute(output).parent_path());
    options.max_disk = space.available / 10 * 9 / static_cast<std::uint64_t>(place.local_ranks);
  }
  const StatisticsManifest wanted = calibration_manifest(model, tasks, options);
  check_same_run(ranks, wanted);
  if (!is_measured(part, wanted)) calibrate(model, tasks, options, part);
  collect_statistics(ranks, part, output);
  fs::remove_all(part);
  if (place.rank > 0) return std::nullopt;
  return read_statistics_manifest(output);
}

}  // namespace moetrim::cli
