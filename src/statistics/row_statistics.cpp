// One MoE layer's importance of matrices' rows: in memory, and as a safetensors file of three F64 tensors.
#include "moetrim/row_statistics.h"

#include <algorithm>
#include <cstddef>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "statistics/task_block.h"
#include "statistics/tensor_file.h"

namespace moetrim {
namespace {

constexpr std::string_view kFormat = "statistics-rows-1";  // name and version

std::size_t size(int value) { return static_cast<std::size_t>(value); }

/// What the file holds, in the order of its bytes.
std::vector<StatisticsField> fields_of(RowStatistics& rows) {
  const auto field = [&](const char* name, int length, std::vector<double>& values) {
    return StatisticsField{{name, Dtype::f64, {rows.tasks, rows.experts, length}}, values};
  };
  return {field("gate", rows.width, rows.gate), field("up", rows.width, rows.up), field("down", rows.hidden, rows.down)};
}

}  // namespace

RowStatistics::RowStatistics(int layer_id, int task_count, int expert_count, int expert_width, int hidden_size)
    : layer(layer_id), tasks(task_count), experts(expert_count), width(expert_width), hidden(hidden_size) {
  if (layer < 0 || tasks < 1 || experts < 1 || width < 1 || hidden < 1) {
    throw InvalidInput(fmt::format("row importance of layer {} needs at least one task, expert and row, got {}, {}, {} and {}", layer,
                                   tasks, experts, width, hidden));
  }
  const std::size_t pairs = size(tasks) * size(experts);
  gate.assign(pairs * size(width), 0.0);
  up = gate;
  down.assign(pairs * size(hidden), 0.0);
}

void RowStatistics::add(const RowStatistics& other) {
  if (tasks != other.tasks) {
    throw InvalidInput(fmt::format("layer {}: cannot add row importance of {} tasks to that of {}", layer, other.tasks, tasks));
  }
  for (int task = 0; task < tasks; ++task) add_task(task, other, task);
}

void RowStatistics::add_task(int task, const RowStatistics& other, int other_task) {
  if (layer != other.layer || experts != other.experts || width != other.width || hidden != other.hidden) {
    throw InvalidInput(fmt::format("cannot add row importance of layer {} ({} experts, [{}, {}]) to layer {} ({} experts, [{}, {}])",
                                   other.layer, other.experts, other.width, other.hidden, layer, experts, width, hidden));
  }
  add_block(gate, task, other.gate, other_task, size(experts) * size(width));
  add_block(up, task, other.up, other_task, size(experts) * size(width));
  add_block(down, task, other.down, other_task, size(experts) * size(hidden));
}

std::string row_file_name(int layer) { return fmt::format("rows-{:05d}.safetensors", layer); }

void write_row_statistics(const std::filesystem::path& file, const RowStatistics& rows) {
  auto& writable = const_cast<RowStatistics&>(rows);  // fields_of() hands out writable spans; nothing is written through them
  write_fields(file, kFormat, rows.layer, fields_of(writable));
}

RowStatistics read_row_statistics(const std::filesystem::path& path, const StatisticsManifest& manifest) {
  if (manifest.row_rank == 0) throw InvalidInput(path.string() + ": the manifest lists no row importance");
  const auto file = SafetensorsFile::open(path);
  const int layer = read_layer_id(file, kFormat);
  if (std::find(manifest.moe_layers.begin(), manifest.moe_layers.end(), layer) == manifest.moe_layers.end()) {
    fail(file, fmt::format("layer {} is not among those of the manifest", layer));
  }
  // The sizes are the manifest's own claim, so the file's shapes come first.
  RowStatistics shapes;
  shapes.tasks = static_cast<int>(manifest.tasks.size());
  shapes.experts = manifest.experts;
  shapes.width = manifest.expert_width;
  shapes.hidden = static_cast<int>(manifest.sizes.hidden);
  check_fields(file, fields_of(shapes));
  RowStatistics rows(layer, shapes.tasks, shapes.experts, shapes.width, shapes.hidden);
  read_fields(file, fields_of(rows));
  return rows;
}

RowStatistics read_row_statistics(const std::filesystem::path& folder, const StatisticsManifest& manifest, int layer) {
  if (manifest.row_rank == 0) {
    throw InvalidInput(fmt::format("{}: the statistics hold no row importance; calibrate with --statistics row-importance --low-rank R",
                                   folder.string()));
  }
  const auto file = folder / row_file_name(layer);
  RowStatistics rows = read_row_statistics(file, manifest);
  if (rows.layer == layer) return rows;
  throw InvalidInput(fmt::format("{}: is of layer {}; the file belongs to another place", file.string(), rows.layer));
}

}  // namespace moetrim
