// The first step of what a recipe runs.

#include "cli/calibrate_step.h"

#include "moetrim/json_fields.h"

namespace moetrim::cli {

namespace fs = std::filesystem;

namespace {

/// A manifest but for what is measured: the losses of the tasks.
nlohmann::ordered_json without_losses(nlohmann::ordered_json manifest) {
  const auto tasks = manifest.find("tasks");
  if (tasks == manifest.end() || !tasks->is_array()) return manifest;
  for (auto& task : *tasks) {
    if (task.is_object()) task.erase("loss");
  }
  return manifest;
}

}  // namespace

void calibrate_unless_done(const Session& session, const Model& model, const std::vector<Task>& tasks,
                           const CalibrateOptions& options, const fs::path& folder) {
  const auto wanted = without_losses(manifest_to_json(calibration_manifest(model, tasks, options)));
  const fs::path manifest = folder / "manifest.json";
  if (fs::exists(manifest) && without_losses(read_json_file(manifest)) == wanted) {
    session.note("calibrate: unchanged, skipped");
    return;
  }
  fs::remove_all(folder);
  calibrate(model, tasks, options, folder);
}

}  // namespace moetrim::cli
